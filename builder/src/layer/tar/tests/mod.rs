//! Cases for reader and writer together, and against other programs.

mod peers;
mod sparse;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use kiln_registry::digest::Digest;

use super::field::{self, Block};
use super::*;

/// A header block in GNU's or ustar's form, with its checksum.
fn block(name: &str, flag: u8, size: u64, edit: impl FnOnce(&mut Block)) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    field::put_octal(&mut block[field::MODE], 0o644);
    field::put_octal(&mut block[field::SIZE], size);
    block[field::FLAG] = flag;
    block[field::MAGIC].copy_from_slice(field::USTAR_MAGIC);
    edit(&mut block);
    let (sum, _) = field::checksums(&block);
    field::put_octal(&mut block[field::CHECKSUM], u64::try_from(sum).unwrap());
    block.to_vec()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A whole entry with content.
fn entry(name: &str, flag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = block(name, flag, content.len() as u64, |_| {});
    bytes.extend(padded(content));
    bytes
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        super::pax::put(&mut bytes, key.as_bytes(), value);
    }
    entry("PaxHeaders.0/x", b'x', &bytes)
}

fn gnu(block: &mut Block) {
    block[field::MAGIC].copy_from_slice(field::GNU_MAGIC);
}

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Reads everything: names, kinds and contents, or the error's text.
fn read(archive: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(header) = reader.next_entry()? {
        let mut content = Vec::new();
        reader
            .read_to_end(&mut content)
            .map_err(|error| *error.into_inner().unwrap().downcast::<TarError>().unwrap())?;
        assert_eq!(content.len() as u64, header.size);
        entries.push((header, content));
    }
    Ok(entries)
}

fn names(archive: &[u8]) -> Vec<String> {
    let entries = read(archive).unwrap();
    let name = |(header, _): (Header, _)| String::from_utf8(header.path).unwrap();
    entries.into_iter().map(name).collect()
}

fn refusal(archive: &[u8]) -> String {
    read(archive).unwrap_err().to_string()
}

/// One of everything that the writer can be asked for.
fn samples() -> Vec<(Header, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |path: &[u8], kind, edit: &dyn Fn(&mut Header), content: &[u8]| {
        let mut header = Header::new(path, kind);
        header.size = content.len() as u64;
        edit(&mut header);
        all.push((header, content.to_vec()));
    };
    let nothing = |_: &mut Header| {};
    add(b"dir", Kind::Directory, &|h| h.mode = 0o1777, b"");
    add(b"dir/file", Kind::File, &|h| h.mode = 0o4755, b"hello");
    add(
        b"link",
        Kind::Symlink,
        &|h| h.link = b"dir/file".to_vec(),
        b"",
    );
    add(
        b"hard",
        Kind::HardLink,
        &|h| h.link = b"dir/file".to_vec(),
        b"",
    );
    add(b"null", Kind::CharDevice, &|h| h.device = (1, 3), b"");
    add(
        b"disk",
        Kind::BlockDevice,
        &|h| h.device = (259, 1_048_575),
        b"",
    );
    add(b"pipe", Kind::Fifo, &nothing, b"");
    add(&[b'n'; 100], Kind::File, &nothing, b"x");
    add(&[b'n'; 101], Kind::File, &nothing, b"x");
    add(&[b'n'; 100], Kind::Directory, &nothing, b"");
    let deep = [&[b'd'; 155][..], b"/", &[b'n'; 100]].concat();
    add(&deep, Kind::File, &nothing, b"");
    add(&[&deep[..], b"/x"].concat(), Kind::File, &nothing, b"");
    add(
        &[b"0123456789/".repeat(300), b"x".to_vec()].concat(),
        Kind::File,
        &nothing,
        b"y",
    );
    add("grüße".as_bytes(), Kind::File, &nothing, b"");
    add(b"raw \xff\n name", Kind::File, &nothing, b"");
    add(b"l2", Kind::Symlink, &|h| h.link = vec![b'l'; 101], b"");
    add(
        b"ids",
        Kind::File,
        &|h| (h.uid, h.gid) = (2_097_151, 2_097_152),
        b"",
    );
    add(
        b"ids2",
        Kind::File,
        &|h| (h.uid, h.gid) = (1_407_182_137, u32::MAX - 1),
        b"",
    );
    add(b"old", Kind::File, &|h| h.mtime = Time::seconds(-5), b"");
    add(
        b"new",
        Kind::File,
        &|h| h.mtime = Time::seconds(0o77_777_777_777 + 1),
        b"",
    );
    add(
        b"caps",
        Kind::File,
        &|h| {
            let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            h.xattrs.insert(b"security.capability".to_vec(), capability);
            h.xattrs.insert(b"user.empty".to_vec(), Vec::new());
            h.xattrs.insert(
                b"user.evil".to_vec(),
                b"x\n22 linkpath=/etc/evil\n".to_vec(),
            );
        },
        b"",
    );
    all
}

fn write(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, content) in entries {
        writer.entry(header).unwrap();
        writer.content(content).unwrap();
    }
    let (bytes, size) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

#[test]
fn what_is_written_reads_back() {
    let samples = samples();
    assert_eq!(read(&write(&samples)).unwrap(), samples);
}

#[test]
fn written_bytes_are_pinned() {
    let digests: Vec<_> = samples()
        .iter()
        .map(|sample| Digest::of(&write(std::slice::from_ref(sample))).hex()[..6].to_owned())
        .collect();
    let pinned = "198075 a0f307 f43a79 8dd24e f464ca 8c2e9c 9c9b40 6eb2cd 0c0852 b28ba6 6b661e 592b40 \
        b558c8 eb7254 de68dd b72d8c a3b537 73ed26 38e2b9 a219c1 bccba5";
    assert_eq!(digests.join(" "), pinned);
    assert_eq!(Digest::of(&write(&samples())).short(), "b13f2e8b0e3c");
    assert_eq!(Digest::of(&write(&[])), Digest::of(&END));
}

#[test]
fn an_extended_header_stands_only_where_needed() {
    let extended = |sample: &(Header, Vec<u8>)| write(std::slice::from_ref(sample))[156] == b'x';
    let needing: Vec<_> = samples()
        .iter()
        .enumerate()
        .filter_map(|(index, sample)| extended(sample).then_some(index))
        .collect();
    assert_eq!(needing, [8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
}

#[test]
fn the_writer_checks_sizes_and_names() {
    let mut writer = Writer::new(Vec::new());
    let mut header = Header::new("a", Kind::File);
    header.size = 3;
    writer.entry(&header).unwrap();
    writer.content(b"ab").unwrap();
    assert!(matches!(
        writer.content(b"cd"),
        Err(WriteError::Size {
            expected: 3,
            actual: 4
        })
    ));
    assert!(matches!(
        writer.entry(&header),
        Err(WriteError::Size {
            expected: 3,
            actual: 2
        })
    ));
    assert!(matches!(writer.finish(), Err(WriteError::Size { .. })));
    let mut writer = Writer::new(Vec::new());
    let nul = Header::new("a\0b", Kind::File);
    assert!(matches!(writer.entry(&nul), Err(WriteError::Name(_))));
    let mut attribute = Header::new("a", Kind::File);
    attribute.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
    assert!(matches!(writer.entry(&attribute), Err(WriteError::Name(_))));
}

#[test]
fn sizes_beyond_eight_gigabytes() {
    let mut writer = Writer::new(std::io::sink());
    let mut header = Header::new("big", Kind::File);
    header.size = 8 << 30;
    writer.entry(&header).unwrap();
    let mut archive = pax(&[("size", b"8589934592")]);
    archive.extend(block("big", b'0', 0, |_| {}));
    let header = Reader::new(&archive[..]).next_entry().unwrap().unwrap();
    assert_eq!(header.size, 8 << 30);
    assert!(
        matches!(writer.finish(), Err(WriteError::Size { expected, .. }) if expected == 8 << 30)
    );
}

#[test]
fn kinds_without_content_have_no_size() {
    for flag in *b"123456" {
        let mut archive = block("a", flag, 1024, |_| {});
        archive.extend(entry("hidden", b'0', b""));
        archive.extend(entry("also", b'0', b""));
        assert_eq!(names(&archive), ["a", "hidden", "also"], "{flag}");
    }
}

#[test]
fn records_are_not_lines_and_the_last_one_wins() {
    let mut archive = pax(&[
        ("path", b"first"),
        ("SCHILY.xattr.user.x", b"x\n22 linkpath=/etc/evil\n"),
        ("path", b"new\nline"),
    ]);
    archive.extend(block("short", b'2', 0, |b| {
        b[157..165].copy_from_slice(b"harmless");
    }));
    let (header, _) = read(&archive).unwrap().remove(0);
    assert_eq!(header.path, b"new\nline");
    assert_eq!(header.link, b"harmless");
}

#[test]
fn an_empty_record_leaves_the_field() {
    let mut archive = pax(&[("path", b"other"), ("path", b""), ("mtime", b"")]);
    archive.extend(entry("kept", b'0', b""));
    archive.extend(END);
    assert_eq!(names(&archive), ["kept"]);
}

#[test]
fn times_of_all_kinds() {
    for (record, field, expected) in [
        (Some(&b"-1.5"[..]), &b"00000000001\0"[..], (-2, 500_000_000)),
        (Some(b"1.000000001"), b"00000000007\0", (1, 1)),
        (
            None,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb",
            (-5, 0),
        ),
        (None, b"00000000017\0", (15, 0)),
    ] {
        let mut archive = record.map_or(Vec::new(), |time| pax(&[("mtime", time)]));
        archive.extend(block("a", b'0', 0, |b| {
            b[field::MTIME].copy_from_slice(field);
        }));
        let (header, _) = read(&archive).unwrap().remove(0);
        assert_eq!((header.mtime.seconds, header.mtime.nanos), expected);
    }
}

#[test]
fn long_names_of_gnu() {
    let long = "n".repeat(300);
    let mut archive = entry("././@LongLink", b'L', format!("{long}\0").as_bytes());
    archive.extend(entry(
        "././@LongLink",
        b'K',
        format!("{long}/t\0").as_bytes(),
    ));
    archive.extend(block("n", b'2', 0, gnu));
    let (header, _) = read(&archive).unwrap().remove(0);
    assert_eq!(header.path, long.as_bytes());
    assert_eq!(header.link, format!("{long}/t").as_bytes());
}

#[test]
fn old_directories_end_in_a_slash() {
    let mut archive = block("d/", 0, 0, |b| b[field::MAGIC].fill(0));
    archive.extend(block("f", 0, 0, |b| b[field::MAGIC].fill(0)));
    archive.extend(block("g/", b'0', 0, |_| {}));
    let kinds: Vec<_> = read(&archive)
        .unwrap()
        .into_iter()
        .map(|(h, _)| (h.path, h.kind))
        .collect();
    let expected = [("d", Kind::Directory), ("f", Kind::File), ("g", Kind::File)];
    assert_eq!(
        kinds,
        expected.map(|(path, kind)| (path.as_bytes().to_vec(), kind))
    );
}

#[test]
fn prefixes_of_each_form() {
    let prefix = |b: &mut Block| b[345..350].copy_from_slice(b"a/b/c");
    assert_eq!(names(&block("n", b'0', 0, prefix)), ["a/b/c/n"]);
    let star = |b: &mut Block| {
        prefix(b);
        b[508..].copy_from_slice(b"tar\0");
    };
    assert_eq!(names(&block("n", b'0', 0, star)), ["a/b/c/n"]);
    // Go before 1.8 wrote this.
    let old_go = |b: &mut Block| {
        gnu(b);
        prefix(b);
    };
    assert_eq!(names(&block("n", b'0', 0, old_go)), ["a/b/c/n"]);
    let times = |b: &mut Block| {
        gnu(b);
        b[345..357].copy_from_slice(b"14000000000\0");
    };
    assert_eq!(names(&block("n", b'0', 0, times)), ["n"]);
}

#[test]
fn ends_of_archives() {
    let one = entry("a", b'0', b"abc");
    let with = |tail: &[u8]| [&one[..], tail].concat();
    // As Go: two blocks, one at the very end, none, even without the last padding.
    for archive in [
        with(&END),
        with(&END[..512]),
        one.clone(),
        one[..515].to_vec(),
        one[..600].to_vec(),
        with(&[&END[..], &[1; 700][..]].concat()),
    ] {
        assert_eq!(names(&archive), ["a"], "{}", archive.len());
    }
    assert_eq!(names(&[]), [""; 0]);
    assert!(refusal(&with(&[&END[..512], &one[..]].concat())).contains("single block of zeros"));
    for cut in [514, 1024 + 1, 1024 + 511] {
        let archive = with(&one);
        assert!(refusal(&archive[..cut]).contains("cut off"), "{cut}");
    }
    let header = pax(&[("path", b"x")]);
    assert!(refusal(&header).contains("cut off"));
    assert!(refusal(&[&header[..], &END].concat()).contains("cut off"));
    assert!(refusal(&header[..700]).contains("cut off"));
}

#[test]
fn a_reader_that_failed_stays_at_its_end() {
    let archive = [vec![1; 512], entry("a", b'0', b"")].concat();
    let mut reader = Reader::new(&archive[..]);
    assert!(reader.next_entry().is_err());
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn what_is_ambiguous_or_malformed_is_refused() {
    let file = entry("a", b'0', b"");
    let long = |name: &str| entry("././@LongLink", b'L', name.as_bytes());
    let global = |records: &[(&str, &[u8])]| {
        let mut header = pax(records);
        header[156] = b'g';
        let (sum, _) = field::checksums(header[..512].try_into().unwrap());
        field::put_octal(&mut header[field::CHECKSUM], u64::try_from(sum).unwrap());
        header
    };
    let with = |edit: &dyn Fn(&mut Block)| block("a", b'0', 0, edit);
    for (archive, expected) in [
        (
            [long("b"), long("b"), file.clone()].concat(),
            "two long names",
        ),
        (
            [pax(&[]), pax(&[]), file.clone()].concat(),
            "two extended headers",
        ),
        (
            [pax(&[("path", b"c")]), long("b"), file.clone()].concat(),
            "differ",
        ),
        ([global(&[("size", b"3")]), file.clone()].concat(), "global"),
        (
            [long("b"), global(&[("comment", b"x")]), file.clone()].concat(),
            "global",
        ),
        ([pax(&[("path", b"a\0b")]), file.clone()].concat(), "record"),
        ([pax(&[("size", b"-1")]), file.clone()].concat(), "size"),
        ([pax(&[("size", b"+1")]), file.clone()].concat(), "size"),
        (
            [pax(&[("uid", b"4294967295")]), file.clone()].concat(),
            "user id",
        ),
        ([pax(&[("mtime", b"1e9")]), file.clone()].concat(), "time"),
        (
            with(&|b| {
                b[field::SIZE].copy_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
            }),
            "size",
        ),
        (
            with(&|b| b[field::SIZE].copy_from_slice(b"0000000009\0\0")),
            "size",
        ),
        (
            with(&|b| b[field::UID].copy_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xfe")),
            "user id",
        ),
        (with(&|b| b[field::FLAG] = b'V'), "unsupported type `V`"),
        (with(&|b| b[field::FLAG] = 0x1b), "unsupported type `\\x1b`"),
        ([vec![b'x'; 512]].concat(), "checksum"),
        (
            block("a", b'x', MAX_METADATA + 1, |_| {}),
            "1048576 bytes of metadata",
        ),
        (
            block("a", b'L', 1 << 32, |_| {}),
            "1048576 bytes of metadata",
        ),
        (
            [long(&"n".repeat(4097)), file.clone()].concat(),
            "4096 bytes of name",
        ),
        (
            [global(&[("comment", b"x")]).repeat(17), file.clone()].concat(),
            "16 headers",
        ),
    ] {
        let refusal = refusal(&archive);
        assert!(refusal.contains(expected), "{refusal} / {expected}");
    }
    let fine = [
        global(&[("comment", b"x")]).repeat(3),
        long("same"),
        pax(&[("path", b"same")]),
        file,
    ];
    assert_eq!(names(&fine.concat()), ["same"]);
}

#[test]
fn no_input_panics() {
    // Every single-byte change of an archive with everything in it, and every cut.
    let mut archive = write(&samples()[..8]);
    for sparse in sparse::sparse_archives() {
        archive.extend(sparse);
    }
    let whole = read(&archive);
    assert!(whole.is_ok() || whole.is_err());
    let mut changed = archive.clone();
    for index in 0..archive.len() {
        changed[index] = [0, b'9', 0xff][index % 3];
        drop(read(&changed));
        changed[index] = archive[index];
    }
    for cut in (0..archive.len()).step_by(37) {
        drop(read(&archive[..cut]));
    }
}

/// An extended header that gives the next entry a time with nanoseconds.
pub(in crate::layer) fn fraction_header(time: Time) -> Vec<u8> {
    let text = format!("{}.{:09}", time.seconds, time.nanos);
    pax(&[("mtime", text.as_bytes())])
}
