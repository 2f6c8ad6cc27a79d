//! Sparse files, in the four forms that archives have for them.

use super::*;

/// Content `AAAA` at 0 and `BB` at 1000 of 2000 bytes.
fn sparse_content() -> Vec<u8> {
    let mut content = vec![0; 2000];
    content[..4].fill(b'A');
    content[1000..1002].fill(b'B');
    content
}

pub(super) fn sparse_archives() -> Vec<Vec<u8>> {
    let file = entry("fallback", b'0', b"AAAABB");
    let named: &[(&str, &[u8])] = &[("GNU.sparse.name", b"real")];
    let zero_zero: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let zero_one: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"0,4,1000,2"),
    ];
    let one_zero: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"2000"),
    ];
    let mapped = [padded(b"2\n0\n4\n1000\n2\n"), b"AAAABB".to_vec()].concat();
    let old = block("real", b'S', 6, |b| {
        gnu(b);
        for (index, number) in [0, 4, 1000, 2].into_iter().enumerate() {
            let at = field::GNU_SPARSE.start + 12 * index;
            field::put_octal(&mut b[at..at + 12], number);
        }
        field::put_octal(&mut b[field::GNU_REAL_SIZE], 2000);
    });
    vec![
        [pax(&[named, zero_zero].concat()), file.clone()].concat(),
        [pax(&[named, zero_one].concat()), file].concat(),
        [
            pax(&[named, one_zero].concat()),
            entry("fallback", b'0', &mapped),
        ]
        .concat(),
        [old, padded(b"AAAABB")].concat(),
    ]
}

#[test]
fn sparse_files_of_four_forms() {
    for (index, mut archive) in sparse_archives().into_iter().enumerate() {
        archive.extend(entry("next", b'0', b"n"));
        let entries = read(&archive).unwrap();
        assert_eq!(entries.len(), 2, "{index}");
        assert_eq!(entries[0].0.path, b"real", "{index}");
        assert_eq!(entries[0].1, sparse_content(), "{index}");
        let mut reader = Reader::new(&archive[..]);
        reader.next_entry().unwrap().unwrap();
        let mut buffer = [0; 100];
        assert_eq!(
            reader.read_stored(&mut buffer).unwrap(),
            Some((0, 4)),
            "{index}"
        );
        assert_eq!(
            reader.read_stored(&mut buffer).unwrap(),
            Some((1000, 2)),
            "{index}"
        );
        assert_eq!(reader.read_stored(&mut buffer).unwrap(), None, "{index}");
    }
}

#[test]
fn sparse_maps_are_checked() {
    let file = entry("f", b'0', b"AAAABB");
    let map = |map: &str, count: &str, size: &str| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.numblocks", count.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
        ];
        [pax(records), file.clone()].concat()
    };
    assert_eq!(
        read(&map("0,4,10,2,12,0", "3", "12")).unwrap()[0].1,
        b"AAAA\0\0\0\0\0\0BB"
    );
    for archive in [
        map("0,4,10,2", "2", "11"),
        map("0,4,3,2", "2", "100"),
        map("10,4,0,2", "2", "100"),
        map("0,4,10,3", "2", "100"),
        map("0,4", "1", "100"),
        map("0,4,10", "2", "100"),
        map("0,4,10,2", "3", "100"),
        map("0,-4,10,2", "2", "100"),
        map("0,6,18446744073709551615,1", "2", "100"),
        map(&vec!["0,0"; MAX_SEGMENTS + 1].join(","), "10001", "6"),
    ] {
        assert!(
            refusal(&archive).contains("sparse"),
            "{}",
            refusal(&archive)
        );
    }
    let one_zero: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"10"),
    ];
    for content in [
        "2\n0\n4\n",
        "x\n",
        "10001\n",
        "99999999999999999999999\n",
        "1\n0\n",
    ] {
        let content = padded(content.as_bytes());
        let archive = [pax(one_zero), entry("f", b'0', &content)].concat();
        assert!(
            refusal(&archive).contains("sparse"),
            "{}",
            refusal(&archive)
        );
    }
    let version: &[(&str, &[u8])] = &[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")];
    assert!(refusal(&[pax(version), file].concat()).contains("version"));
}
