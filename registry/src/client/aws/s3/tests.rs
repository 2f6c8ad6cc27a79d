use super::*;

#[test]
fn c5_addresses_of_buckets() {
    let at = |bucket: &str, region: &str, endpoint: Option<&str>, path_style| {
        let options = BucketOptions {
            bucket: bucket.to_owned(),
            region: region.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            path_style,
            ..BucketOptions::default()
        };
        base(&options).map_or_else(|error| error.to_string(), |url| url.to_string())
    };
    for (bucket, region, endpoint, path_style, expected) in [
        (
            "b",
            "eu-west-1",
            None,
            false,
            "https://b.s3.eu-west-1.amazonaws.com/",
        ),
        (
            "b",
            "eu-west-1",
            None,
            true,
            "https://s3.eu-west-1.amazonaws.com/b/",
        ),
        (
            "b.c",
            "eu-west-1",
            None,
            false,
            "https://s3.eu-west-1.amazonaws.com/b.c/",
        ),
        (
            "b",
            "cn-north-1",
            None,
            false,
            "https://b.s3.cn-north-1.amazonaws.com.cn/",
        ),
        (
            "b",
            "x",
            Some("https://minio.example:9000"),
            false,
            "https://b.minio.example:9000/",
        ),
        (
            "b",
            "x",
            Some("https://minio.example/s3/"),
            true,
            "https://minio.example/s3/b/",
        ),
        (
            "b",
            "x",
            Some("http://127.0.0.1:9000"),
            false,
            "http://127.0.0.1:9000/b/",
        ),
        (
            "b",
            "x",
            Some("http://[::1]:9000"),
            false,
            "http://[::1]:9000/b/",
        ),
    ] {
        assert_eq!(at(bucket, region, endpoint, path_style), expected);
    }
    for endpoint in ["minio.example", "ftp://minio.example", "http://a/?x=1"] {
        let message = at("b", "x", Some(endpoint), false);
        assert!(!message.starts_with("http"), "{message}");
    }
}
