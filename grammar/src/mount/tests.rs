use super::record::size;
use super::*;

fn message(record: &str) -> String {
    parse_mount(record).unwrap_err().to_string()
}

#[test]
fn bind_is_the_default_type() {
    let Mount::Bind(bind) = parse_mount("Target=/a,source=b,from=c,rw").unwrap() else {
        panic!("B1.1");
    };
    assert_eq!(
        (
            bind.target.as_str(),
            bind.source.as_deref(),
            bind.from.as_deref()
        ),
        ("/a", Some("b"), Some("c"))
    );
    assert!(bind.writable);
    for (record, writable) in [
        ("target=/a", false),
        ("target=/a,ro=false", true),
        ("target=/a,rw=0", false),
        ("target=/a,rw,ro", false),
    ] {
        let Mount::Bind(bind) = parse_mount(record).unwrap() else {
            panic!("{record}");
        };
        assert_eq!(bind.writable, writable, "{record}");
    }
}

#[test]
fn cache_takes_all_its_keys() {
    let record = "type=CACHE,dst=/c,id=x,sharing=Locked,mode=0700,uid=1,gid=2,from=s,src=/d,ro";
    let expected = Cache {
        target: "/c".to_owned(),
        id: Some("x".to_owned()),
        sharing: Sharing::Locked,
        readonly: true,
        from: Some("s".to_owned()),
        source: Some("/d".to_owned()),
        mode: Some(0o700),
        uid: Some(1),
        gid: Some(2),
    };
    assert_eq!(parse_mount(record), Ok(Mount::Cache(expected)), "B2");
}

#[test]
fn secrets_name_themselves() {
    let secret = |record: &str| match parse_mount(record).unwrap() {
        Mount::Secret(secret) => (secret.id, secret.target, secret.env),
        other => panic!("{other:?}"),
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        secret("type=secret,id=a/b"),
        ("a/b".to_owned(), text("/run/secrets/b"), None)
    );
    assert_eq!(
        secret("type=secret,target=/x/y"),
        ("y".to_owned(), text("/x/y"), None)
    );
    assert_eq!(
        secret("type=secret,src=a,env=T"),
        ("a".to_owned(), None, text("T"))
    );
    assert_eq!(
        secret("type=secret,id=a,env=T,target=/t"),
        ("a".to_owned(), text("/t"), text("T"))
    );
    assert_eq!(
        message("type=secret,id=a,source=b"),
        "both source and id can't be set"
    );
    assert_eq!(
        message("type=secret,env=A"),
        "invalid secret mount. one of source, target required"
    );
    assert_eq!(
        message("type=secret,id=a,from=b"),
        "unexpected key 'from' for mount type 'secret'"
    );
    assert_eq!(
        message("type=secret,id=a,sharing=shared"),
        "unexpected key 'sharing' for mount type 'secret'"
    );
}

#[test]
fn ssh_has_defaults() {
    let expected = Ssh {
        id: "default".to_owned(),
        target: None,
        required: true,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    assert_eq!(parse_mount("type=ssh,required"), Ok(Mount::Ssh(expected)));
    assert_eq!(
        message("type=ssh,rw"),
        "unexpected key 'rw' for mount type 'ssh'"
    );
    assert_eq!(message("type=ssh,ro=false"), "invalid value for ro: false");
}

#[test]
fn sizes_have_units() {
    for (text, bytes) in [
        ("1", Some(1)),
        ("1b", Some(1)),
        ("1k", Some(1024)),
        ("2M", Some(2 << 20)),
        ("1.5g", Some(3 << 29)),
        ("1 gb", Some(1 << 30)),
        ("1GiB", Some(1 << 30)),
        ("", None),
        ("g", None),
        ("1x", None),
        ("1ib", None),
        ("1.2.3", None),
        ("-1", None),
        ("99999999999999999999", None),
        ("99999999999p", None),
    ] {
        assert_eq!(size(text), bytes, "{text:?}");
    }
    let Mount::Tmpfs(tmpfs) = parse_mount("type=tmpfs,target=/t,size=64m,rw").unwrap() else {
        panic!("B2");
    };
    assert_eq!(tmpfs.size, Some(64 << 20));
    assert_eq!(
        message("type=tmpfs,target=/t,size=many"),
        "invalid value for size: many"
    );
    assert_eq!(
        message("type=tmpfs,target=/t,ro"),
        "unexpected key 'ro' for mount type 'tmpfs'"
    );
}

#[test]
fn records_are_csv() {
    let Mount::Bind(bind) = parse_mount(r#"target=/a,"source=b,""c""""#).unwrap() else {
        panic!("B1.1");
    };
    assert_eq!(bind.source.as_deref(), Some(r#"b,"c""#));
    for record in ["", "\"a", "a\"b", "\"a\"b", "target=/a,\""] {
        assert!(
            matches!(parse_mount(record), Err(MountError::Csv(_))),
            "{record:?}"
        );
    }
}

#[test]
fn refuses_wrong_values() {
    for (record, expected) in [
        (
            "target=/a,mode=1",
            "unexpected key 'mode' for mount type 'bind'",
        ),
        ("type=cache,target=/a,mode=9", "invalid value for mode: 9"),
        (
            "type=cache,target=/a,mode=77777",
            "invalid value for mode: 77777",
        ),
        ("type=cache,target=/a,uid=+1", "invalid value for uid: +1"),
        ("type=cache,target=/a,gid=", "invalid value for gid: "),
        (
            "type=cache,target=/a,ro=maybe",
            "invalid value for ro: maybe",
        ),
        ("target=//./", "invalid mount target \"//./\""),
        ("target=/a,", "unexpected key '' in ''"),
        ("type=volume,target=/a", "unsupported mount type \"volume\""),
        (
            "target=/a,required",
            "unexpected key 'required' for mount type 'bind'",
        ),
    ] {
        assert_eq!(message(record), expected, "{record}");
    }
}

#[test]
fn expands_values_but_not_from() {
    let mut expand = |value: &str| Ok(value.replace("$T", "/a,ro"));
    let Mount::Bind(bind) = expand_mount("target=$T,rw", &mut expand).unwrap() else {
        panic!("B1.3");
    };
    assert_eq!((bind.target.as_str(), bind.writable), ("/a,ro", true));
    let refused = expand_mount("from=$T,target=/a", &mut expand).unwrap_err();
    assert_eq!(refused, MountError::FromVariable, "A5.2");
    let mut fail = |_: &str| Err(WordError::BadSubstitution);
    let refused = expand_mount("target=${}", &mut fail).unwrap_err();
    assert!(matches!(
        refused,
        MountError::Expansion { key: "target", .. }
    ));
}

#[test]
fn checks_what_can_be_known_before_expansion() {
    assert_eq!(check("type=$T,target=$X"), Ok(()));
    assert_eq!(check("type=cache,target=/c$"), Ok(()));
    assert!(check("type=$T,tarjet=$X").is_err());
    assert!(check("type=cahce,target=/x").is_err());
}
