use super::*;

fn kind(text: &str) -> Kind {
    Output::parse(text).unwrap().kind
}

#[test]
fn c1_a_bare_word_is_a_folder_or_standard_output() {
    let local = |dest: &str, delete| Kind::Local {
        dest: dest.into(),
        delete,
    };
    assert_eq!(kind("out"), local("out", false));
    assert_eq!(kind("a=b"), local("a=b", false));
    assert_eq!(kind("-"), Kind::Tar(Dest::Stdout));
    assert_eq!(kind("type=local,dest=out,mode=delete"), local("out", true));
}

#[test]
fn c4_outputs_of_all_types() {
    let path = |text: &str| Dest::Path(text.into());
    assert_eq!(kind("type=tar"), Kind::Tar(Dest::Stdout));
    assert_eq!(kind("type=tar,dest=x.tar"), Kind::Tar(path("x.tar")));
    assert_eq!(kind("type=oci,dest=x"), Kind::Oci(path("x")));
    assert_eq!(kind("type=oci,dest=x,tar=false"), Kind::Layout("x".into()));
    assert_eq!(kind("type=docker,dest=x"), Kind::Docker(path("x")));
    assert_eq!(kind("type=docker"), Output::load().kind);
    assert_eq!(kind("type=cacheonly"), Kind::CacheOnly);
    assert_eq!(kind("type=image"), Output::load().kind);
    assert_eq!(kind("type=registry"), Output::push().kind);
    let image = Output::parse(r#"type=image,"name=a.example/b,c:1",push-by-digest=true"#);
    let image = image.unwrap();
    let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    assert_eq!(names, ["a.example/b:latest", "c:1"]);
    assert!(matches!(
        image.kind,
        Kind::Image {
            push: true,
            by_digest: true,
            ..
        }
    ));
}

#[test]
fn c4_1_options_of_images() {
    let text = "type=oci,dest=x,Compression=zstd,compression-level=19,force-compression=true,oci-mediatypes=false,annotation.Key=v,annotation-manifest[linux/amd64].b=c=d";
    let form = Output::parse(text).unwrap().form.unwrap();
    assert_eq!(form.compression, Some(Compression::Zstd));
    assert_eq!(
        (form.level, form.force, form.docker),
        (Some(19), true, true)
    );
    let annotations = form.annotations.into_iter().collect::<Vec<_>>();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(annotations, [pair("Key", "v"), pair("b", "c=d")]);
    assert_eq!(annotation("manifest:a=b").unwrap(), pair("a", "b"));
    assert_eq!(annotation("a=b:c").unwrap(), pair("a", "b:c"));
}

#[test]
fn c4_3_what_is_not_known_is_named() {
    for (text, expected) in [
        (
            "type=lokal,dest=x",
            "unknown type `lokal` of --output, did you mean local?",
        ),
        ("dest=x,name=y", "type is required for --output"),
        ("type=local", "dest is required for type=local"),
        ("type=local,dest=-", "dest is required for type=local"),
        (
            "type=oci,tar=false",
            "dest is required for type=oci,tar=false",
        ),
        (
            "type=local,dest=x,compression=gzip",
            "unknown option `compression` for type=local",
        ),
        (
            "type=image,nam=x",
            "unknown option `nam` for type=image in --output, did you mean name?",
        ),
        (
            "type=image,push=maybe",
            "invalid value `maybe` of `push`: expected true or false",
        ),
        ("type=image,name=A", "invalid name `A`"),
        ("type=image,push", "`push` must be a key=value pair"),
        (
            "type=oci,compression=estargz",
            "compression=estargz is not supported",
        ),
        (
            "type=oci,compression=lzma",
            "expected gzip, zstd or uncompressed",
        ),
        (
            "type=oci,compression=zstd,compression-level=23",
            "expected a number from 0 to 22",
        ),
        (
            "type=oci,compression-level=10",
            "expected a number from 1 to 9",
        ),
        (
            "type=oci,compression=uncompressed,compression-level=1",
            "compression-level without compression",
        ),
        (
            "type=oci,rewrite-timestamp=true",
            "`rewrite-timestamp=true` is not supported",
        ),
        (
            "type=oci,annotation-index.a=b",
            "index annotations not supported for single platform export",
        ),
        (
            "type=local,dest=x,annotation.a=b",
            "unknown option `a` for type=local",
        ),
        ("type=docker,context=other,dest=x", "`context=other`"),
    ] {
        let error = Output::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(Output::parse("type=image,rewrite-timestamp=false").is_ok());
    for text in [
        "a",
        "=b",
        "manifests:a=b",
        "index:a=b",
        "manifest-descriptor:a=b",
    ] {
        assert!(annotation(text).is_err(), "{text}");
    }
}
