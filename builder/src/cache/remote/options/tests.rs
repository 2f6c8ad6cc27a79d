use super::fields::size;
use super::*;

fn from(text: &str) -> String {
    match CacheFrom::parse(text, &|_| None) {
        Ok(from) => format!("{:?}", from.spec),
        Err(error) => error.to_string(),
    }
}

fn refused(text: &str) -> String {
    CacheTo::parse(text, &|_| None).unwrap_err().to_string()
}

#[test]
fn c1_a_bare_reference_is_one_in_a_registry() {
    let to = CacheTo::parse("registry.example/app:cache", &|_| None).unwrap();
    let Target::Place(Spec::Registry(reference)) = &to.target else {
        panic!("{to:?}");
    };
    assert_eq!(reference.to_string(), "registry.example/app:cache");
    assert_eq!((to.mode, to.oci, to.ignore_error), (Mode::Min, true, true));
    let same = CacheTo::parse("type=registry,ref=registry.example/app:cache", &|_| None).unwrap();
    assert_eq!(to, same);
    assert!(from("app").contains("latest"));
}

#[test]
fn c5_options_of_exports() {
    let to = CacheTo::parse(
        "type=local,dest=/c,mode=max,max=5G,tag=main,reset=true,compression=zstd,ignore-error=false",
        &|_| None,
    )
    .unwrap();
    assert_eq!(to.max, Some(5_000_000_000));
    assert!(to.reset && !to.ignore_error);
    assert_eq!(to.mode, Mode::Max);
    assert_eq!(to.packing.compression, Compression::Zstd);
    assert_eq!(
        CacheTo::parse("type=inline", &|_| None).unwrap().target,
        Target::Inline
    );
}

#[test]
fn c5_what_is_not_known_is_named() {
    for (text, expected) in [
        (
            "type=regsitry,ref=a",
            "unknown cache type `regsitry` in --cache-to, did you mean registry?",
        ),
        (
            "type=registry,ref=a,mod=max",
            "unknown option `mod` for type=registry in --cache-to, did you mean mode?",
        ),
        ("type=registry", "--cache-to: type=registry needs `ref=`"),
        (
            "type=local,src=a",
            "unknown option `src` for type=local in --cache-to",
        ),
        (
            "ref=a",
            "--cache-to: type=registry|local|inline|s3 needs `type=`",
        ),
        (
            "type=registry,ref=a,mode=all",
            "--cache-to: invalid value `all` of `mode`: expected min or max",
        ),
        (
            "type=local,dest=a,max=x",
            "--cache-to: invalid value `x` of `max`: expected a size, as in 500MB or 5G",
        ),
        (
            "type=registry,ref=A B",
            "--cache-to: invalid reference `A B`",
        ),
        (
            "type=registry,ref=a,reset",
            "invalid --cache-to: `reset` must be a key=value pair",
        ),
    ] {
        let message = refused(text);
        assert!(message.starts_with(expected), "{text}: {message}");
    }
    for text in [
        "type=gha",
        "type=azblob,name=a",
        "type=inline,mode=max",
        "type=registry,ref=a,compression=estargz",
        "type=registry,ref=a,compression-level=3",
        "type=registry,ref=a,image-manifest=false",
    ] {
        assert!(refused(text).contains("is not supported"), "{text}");
    }
    assert!(from("type=inline").contains("type=registry,ref=IMAGE"));
}

#[test]
fn c5_buckets() {
    let environment = |name: &str| match name {
        "AWS_REGION" => Some("eu-west-1".to_owned()),
        "AWS_BUCKET" => Some("from-variable".to_owned()),
        _ => None,
    };
    let from = CacheFrom::parse("type=s3", &environment).unwrap();
    let Spec::S3 { bucket, names } = from.spec else {
        panic!("{from:?}");
    };
    assert_eq!(
        (bucket.bucket.as_str(), bucket.region.as_str()),
        ("from-variable", "eu-west-1")
    );
    assert_eq!(
        (
            bucket.blobs_prefix.as_str(),
            bucket.manifests_prefix.as_str()
        ),
        ("blobs/", "manifests/")
    );
    assert_eq!((names, bucket.keys), (vec!["kiln".to_owned()], None));
    let text = "type=s3,bucket=b,region=r,name=a;b,prefix=p/,access_key_id=I,secret_access_key=hunter2,\
                session_token=hunter3,touch_refresh=1h30m,upload_parallelism=7,mode=max";
    let to = CacheTo::parse(text, &|_| None).unwrap();
    let shown = format!("{to:?}");
    assert!(!shown.contains("hunter"), "{shown}");
    assert_eq!((to.mode, to.parallel), (Mode::Max, 7));
    let Target::Place(Spec::S3 { bucket, names }) = to.target else {
        panic!("{shown}");
    };
    assert_eq!((names.len(), bucket.touch_refresh.as_secs()), (2, 5400));
    for (text, expected) in [
        ("type=s3", "--cache-to: type=s3 needs `bucket=`"),
        ("type=s3,bucket=b", "--cache-to: type=s3 needs `region=`"),
        (
            "type=s3,bucket=b,region=r,access_key_id=I",
            "--cache-to: type=s3 needs `secret_access_key=`",
        ),
        (
            "type=s3,bucket=b,region=r,endpoint=x",
            "unknown option `endpoint` for type=s3 in --cache-to",
        ),
        (
            "type=s3,bucket=b,region=r,max_attempts=3",
            "unknown option `max_attempts`",
        ),
        (
            "type=s3,bucket=b/c,region=r",
            "--cache-to: invalid value `b/c` of `bucket`",
        ),
        (
            "type=s3,bucket=b,region=r,endpoint_url=x",
            "--cache-to: invalid value `x` of `endpoint_url`",
        ),
        (
            "type=s3,bucket=b,region=r,touch_refresh=1d",
            "--cache-to: invalid value `1d` of `touch_refresh`",
        ),
        (
            "type=s3,bucket=b,region=r,upload_parallelism=0",
            "--cache-to: invalid value `0` of `upload_parallelism`",
        ),
    ] {
        let message = refused(text);
        assert!(message.starts_with(expected), "{text}: {message}");
    }
}

#[test]
fn places_of_mounts() {
    let parsed = |text: &str| CacheMounts::parse(text, &|_| None);
    let mounts = parsed("dir:.cache/mounts,max=2G").unwrap();
    let expected = Spec::Local {
        path: PathBuf::from(".cache/mounts"),
        tag: "mounts".to_owned(),
        digest: None,
    };
    assert_eq!((mounts.spec, mounts.max), (expected, Some(2_000_000_000)));
    assert!(matches!(
        parsed("registry.example/app:mounts").unwrap().spec,
        Spec::Registry(_)
    ));
    let message = |text: &str| parsed(text).unwrap_err().to_string();
    assert_eq!(message("dir:"), "--cache-mounts: type=local needs `dest=`");
    assert!(
        message("dir:x,mx=1").contains("unknown option `mx`"),
        "{}",
        message("dir:x,mx=1")
    );
    assert!(message("type=gha").contains("type=gha is not supported"));
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", Some(0)),
        ("512", Some(512)),
        ("5g", Some(5_000_000_000)),
        ("1.5MB", Some(1_500_000)),
        ("2GiB", Some(2 << 30)),
        ("10 kb", Some(10_000)),
        ("", None),
        ("x", None),
        ("5i", None),
        ("99999999999T", None),
        ("1..2G", None),
    ] {
        assert_eq!(size(text), bytes, "{text}");
    }
}
