//! Makes a complete DEFLATE stream (RFC 1951) one that another stream can follow.
//!
//! The compressor ends what it makes: the last block is marked, and how many bits of the last byte
//! count is not known. So the symbols are read, without making anything of them but their number of
//! bytes, to find the mark and the end; the mark is cleared and an empty stored block fills the last
//! byte, which is what zlib calls a sync flush. That takes about a tenth of the time of compressing,
//! and finds a stream that does not give the right number of bytes.

/// A stream that is no DEFLATE stream of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the compressor gave a broken stream")]
pub(super) struct Broken;

/// Lets `stream`, which gives `size` bytes, be followed by another one.
pub(super) fn open_end(stream: &mut Vec<u8>, size: usize) -> Result<(), Broken> {
    let mut reader = Reader::new(stream);
    let mut tables = Tables::default();
    let (mut last, mut produced) = (false, 0);
    let mut mark = 0;
    while !last {
        mark = reader.position();
        last = reader.bits(1)? == 1;
        produced += match reader.bits(2)? {
            0 => reader.stored()?,
            1 => {
                tables.fixed()?;
                reader.symbols(&tables)?
            }
            2 => {
                reader.lengths(&mut tables)?;
                reader.symbols(&tables)?
            }
            _ => return Err(Broken),
        };
    }
    let end = reader.position();
    if produced != size || end.div_ceil(8) != stream.len() {
        return Err(Broken);
    }
    stream[mark / 8] &= !(1 << (mark % 8));
    // Three bits for the head of the empty block; the rest of the last byte is zero already.
    if end.div_ceil(8) * 8 - end < 3 {
        stream.push(0);
    }
    stream.extend_from_slice(&[0, 0, 0xff, 0xff]);
    Ok(())
}

/// Longest code of a symbol, bits.
const MOST: usize = 15;
/// Codes up to this length are looked up at once.
const FAST: u32 = 12;
/// Symbols for literals, the end of a block, and lengths.
const LITERALS: usize = 288;
const DISTANCES: usize = 32;
const END: u16 = 256;
/// Base and number of extra bits of the lengths from symbol 257 on.
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// The order in which the lengths of the codes of lengths stand.
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// What a stretch of bits begins with, all in one word, as it is looked up for every symbol.
///
/// From the lowest bit on: the bits to pass, extra bits included (6 bits); those of the code alone (4);
/// the bytes that the symbol stands for, without its extra bits (16); the marks below. 0 is a code that
/// is longer than [`FAST`].
type Entry = u32;
const CODE: u32 = 6;
const BYTES: u32 = 10;
/// A length: its distance follows.
const LENGTH: Entry = 1 << 26;
/// The end of the block.
const STOP: Entry = 1 << 27;
/// No symbol, and yet it has a code.
const INVALID: Entry = 1 << 28;

/// An alphabet: what each of its symbols does.
#[derive(Clone, Copy)]
enum Alphabet {
    /// Literals, the end of the block, and lengths.
    Literals,
    Distances,
    /// Lengths of codes: their bytes are the symbol itself.
    Lengths,
}

impl Alphabet {
    /// What a symbol with a code of `code` bits does.
    fn entry(self, symbol: u16, code: u8) -> Entry {
        let (extra, bytes, marks): (u16, u16, Entry) = match (self, symbol) {
            (Self::Literals, ..END) => (0, 1, 0),
            (Self::Literals, END) => (0, 0, STOP),
            (Self::Literals, _) => match LENGTHS.get(usize::from(symbol - END) - 1) {
                Some(&(bytes, extra)) => (extra.into(), bytes, LENGTH),
                None => (0, 0, INVALID),
            },
            // Two codes for each number of extra bits, but for the first four codes.
            (Self::Distances, ..30) => (symbol.max(2) / 2 - 1, 0, 0),
            (Self::Distances, _) => (0, 0, INVALID),
            (Self::Lengths, _) => (0, symbol, 0),
        };
        let (code, extra) = (u32::from(code), u32::from(extra));
        (code + extra) | code << CODE | u32::from(bytes) << BYTES | marks
    }
}

/// The bits that an entry passes.
#[inline]
fn passed(entry: Entry) -> u32 {
    entry & 63
}

/// The bytes that an entry stands for where the stream has these bits.
#[inline]
fn bytes(entry: Entry, bits: u64) -> usize {
    let code = (entry >> CODE) & 15;
    let extra = (bits & ((1 << passed(entry)) - 1)) >> code;
    number(u64::from((entry >> BYTES) & 0xffff) + extra)
}

/// Finds the symbol that a stretch of bits begins with.
struct Code {
    alphabet: Alphabet,
    /// By the next [`FAST`] bits.
    fast: Box<[Entry; 1 << FAST]>,
    /// How many codes there are of each length.
    counts: [u16; MOST + 1],
    /// The symbols in the order of their codes.
    symbols: Vec<u16>,
}

impl Code {
    fn new(alphabet: Alphabet) -> Self {
        Self {
            alphabet,
            fast: Box::new([0; 1 << FAST]),
            counts: [0; MOST + 1],
            symbols: Vec::new(),
        }
    }

    /// Sets the code up from the lengths of its symbols; 0 is a symbol that does not occur.
    fn set(&mut self, lengths: &[u8]) -> Result<(), Broken> {
        self.counts = [0; MOST + 1];
        for &length in lengths {
            self.counts[usize::from(length)] += 1;
        }
        self.counts[0] = 0;
        // First code and first place of each length.
        let (mut codes, mut places) = ([0_u32; MOST + 2], [0_usize; MOST + 2]);
        for length in 1..=MOST {
            let count = self.counts[length];
            codes[length + 1] = (codes[length] + u32::from(count)) << 1;
            places[length + 1] = places[length] + usize::from(count);
            if codes[length] + u32::from(count) > 1 << length {
                return Err(Broken);
            }
        }
        self.fast.fill(0);
        self.symbols.clear();
        self.symbols.resize(places[MOST + 1], 0);
        for (symbol, &length) in (0_u16..).zip(lengths) {
            if length == 0 {
                continue;
            }
            let at = usize::from(length);
            self.symbols[places[at]] = symbol;
            places[at] += 1;
            let code = codes[at];
            codes[at] += 1;
            if u32::from(length) <= FAST {
                // Codes stand in the stream with their highest bit first.
                let first = code.reverse_bits() >> (32 - u32::from(length));
                let entry = self.alphabet.entry(symbol, length);
                for at in (first..1 << FAST).step_by(1 << length) {
                    self.fast[at as usize] = entry;
                }
            }
        }
        Ok(())
    }

    /// What `bits` begin with.
    #[inline]
    fn find(&self, bits: u64) -> Result<Entry, Broken> {
        match self.fast[number(bits & ((1 << FAST) - 1))] {
            0 => self.find_long(bits),
            entry => Ok(entry),
        }
    }

    /// Walks through the lengths, as the definition of the codes has it.
    #[cold]
    fn find_long(&self, bits: u64) -> Result<Entry, Broken> {
        let (mut code, mut first, mut place) = (0_u32, 0_u32, 0_usize);
        for (length, &count) in (1_u8..).zip(&self.counts[1..]) {
            code |= u32::from((bits >> (length - 1)) & 1 == 1);
            if code < first + u32::from(count) {
                let symbol = self.symbols.get(place + (code - first) as usize);
                let &symbol = symbol.ok_or(Broken)?;
                return Ok(self.alphabet.entry(symbol, length));
            }
            place += usize::from(count);
            first = (first + u32::from(count)) << 1;
            code <<= 1;
        }
        Err(Broken)
    }
}

struct Tables {
    literals: Code,
    distances: Code,
    /// Of the lengths of the codes of a block.
    lengths: Code,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            literals: Code::new(Alphabet::Literals),
            distances: Code::new(Alphabet::Distances),
            lengths: Code::new(Alphabet::Lengths),
        }
    }
}

impl Tables {
    /// The codes of a block that brings none.
    fn fixed(&mut self) -> Result<(), Broken> {
        let mut lengths = [8; LITERALS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.literals.set(&lengths)?;
        self.distances.set(&[5; DISTANCES])
    }
}

/// Reads bits, the lowest of a byte first.
struct Reader<'a> {
    bytes: &'a [u8],
    /// The next byte to be taken.
    next: usize,
    held: u64,
    /// How many bits are held.
    count: u32,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            next: 0,
            held: 0,
            count: 0,
        }
    }

    /// Bits that were read.
    fn position(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    /// Holds at least 56 bits, or all that are left.
    #[inline]
    fn refill(&mut self) {
        if let Some(word) = self.bytes.get(self.next..).and_then(<[u8]>::first_chunk) {
            self.held |= u64::from_le_bytes(*word) << self.count;
            let taken = (63 - self.count) / 8;
            self.next += taken as usize;
            self.count += taken * 8;
        } else {
            while self.count <= 56
                && let Some(&byte) = self.bytes.get(self.next)
            {
                self.held |= u64::from(byte) << self.count;
                self.next += 1;
                self.count += 8;
            }
        }
    }

    #[inline]
    fn skip(&mut self, bits: u32) -> Result<(), Broken> {
        self.count = self.count.checked_sub(bits).ok_or(Broken)?;
        self.held >>= bits;
        Ok(())
    }

    /// A few bits as a number.
    fn bits(&mut self, count: u32) -> Result<usize, Broken> {
        self.refill();
        let bits = self.held & ((1 << count) - 1);
        self.skip(count)?;
        Ok(number(bits))
    }

    /// Passes a block of bytes as they are, and says how many.
    fn stored(&mut self) -> Result<usize, Broken> {
        let start = self.position().div_ceil(8);
        let head = self.bytes.get(start..).and_then(<[u8]>::first_chunk);
        let &[a, b, c, d] = head.ok_or(Broken)?;
        let length = u16::from_le_bytes([a, b]);
        if length != !u16::from_le_bytes([c, d]) {
            return Err(Broken);
        }
        self.next = start + 4 + usize::from(length);
        (self.held, self.count) = (0, 0);
        (self.next <= self.bytes.len())
            .then_some(length.into())
            .ok_or(Broken)
    }

    /// Reads the codes that a block brings with it.
    fn lengths(&mut self, tables: &mut Tables) -> Result<(), Broken> {
        let literals = self.bits(5)? + 257;
        let distances = self.bits(5)? + 1;
        let given = self.bits(4)? + 4;
        let mut of_lengths = [0; ORDER.len()];
        for &at in &ORDER[..given] {
            of_lengths[at] = u8::try_from(self.bits(3)?).map_err(|_| Broken)?;
        }
        tables.lengths.set(&of_lengths)?;
        let mut lengths = [0; LITERALS + DISTANCES + 138];
        let all = literals + distances;
        let mut at = 0;
        while at < all {
            self.refill();
            let entry = tables.lengths.find(self.held)?;
            let symbol = bytes(entry, self.held);
            self.skip(passed(entry))?;
            let (value, times) = match symbol {
                0..=15 => (u8::try_from(symbol).map_err(|_| Broken)?, 1),
                16 => {
                    let before = at.checked_sub(1).ok_or(Broken)?;
                    (lengths[before], 3 + self.bits(2)?)
                }
                17 => (0, 3 + self.bits(3)?),
                _ => (0, 11 + self.bits(7)?),
            };
            let end = at + times;
            lengths[at..end].fill(value);
            at = end;
        }
        if at != all || literals > LITERALS {
            return Err(Broken);
        }
        tables.literals.set(&lengths[..literals])?;
        tables.distances.set(&lengths[literals..all])
    }

    /// Passes the symbols of a block, and says how many bytes they stand for.
    fn symbols(&mut self, tables: &Tables) -> Result<usize, Broken> {
        let mut produced = 0;
        loop {
            produced += self.many_symbols(tables);
            // A length and its distance take 48 bits at most.
            self.refill();
            let entry = tables.literals.find(self.held)?;
            produced += bytes(entry, self.held);
            self.skip(passed(entry))?;
            if entry & LENGTH != 0 {
                let distance = tables.distances.find(self.held)?;
                if distance & INVALID != 0 {
                    return Err(Broken);
                }
                self.skip(passed(distance))?;
            } else if entry & (STOP | INVALID) != 0 {
                return (entry & STOP != 0).then_some(produced).ok_or(Broken);
            }
        }
    }

    /// Passes symbols with short codes, as long as there is no doubt that the stream is long enough:
    /// what takes nearly all the time.
    fn many_symbols(&mut self, tables: &Tables) -> usize {
        const MASK: u64 = (1 << FAST) - 1;
        let (literals, distances) = (&*tables.literals.fast, &*tables.distances.fast);
        let (mut next, mut held, mut count) = (self.next, self.held, self.count);
        let mut produced = 0;
        while let Some(word) = self.bytes.get(next..).and_then(<[u8]>::first_chunk) {
            // As `refill`: at least 56 bits now, of which two short codes with all their extra bits
            // take 40.
            held |= u64::from_le_bytes(*word) << count;
            next += ((63 - count) / 8) as usize;
            count |= 56;
            let entry = literals[number(held & MASK)];
            if entry & LENGTH != 0 {
                let rest = held >> passed(entry);
                let distance = distances[number(rest & MASK)];
                if distance == 0 || distance & INVALID != 0 {
                    break;
                }
                produced += bytes(entry, held);
                held = rest >> passed(distance);
                count -= passed(entry) + passed(distance);
            } else if entry & (STOP | INVALID) == 0 && entry != 0 {
                produced += 1;
                held >>= passed(entry);
                count -= passed(entry);
                // Literals come in rows, and there are bits enough for three more.
                for _ in 0..3 {
                    let entry = literals[number(held & MASK)];
                    if entry & (LENGTH | STOP | INVALID) != 0 || entry == 0 {
                        break;
                    }
                    produced += 1;
                    held >>= passed(entry);
                    count -= passed(entry);
                }
            } else {
                break;
            }
        }
        (self.next, self.held, self.count) = (next, held, count);
        produced
    }
}

/// A few bits.
#[inline]
fn number(bits: u64) -> usize {
    usize::try_from(bits).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use libdeflater::{CompressionLvl, Compressor};
    use proptest::prelude::*;

    use super::*;

    fn compress(content: &[u8], level: i32) -> Vec<u8> {
        let mut compressor = Compressor::new(CompressionLvl::new(level).unwrap());
        let mut stream = vec![0; compressor.deflate_compress_bound(content.len())];
        let size = compressor.deflate_compress(content, &mut stream).unwrap();
        stream.truncate(size);
        stream
    }

    /// Content of several kinds: literals, long matches, and bytes that cannot be compressed.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..3000),
            (any::<u8>(), 0..70_000_usize).prop_map(|(byte, count)| vec![byte; count]),
            (proptest::collection::vec(0..9_u8, 1..40), 1..2000_usize)
                .prop_map(|(piece, times)| piece.repeat(times)),
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn opened_streams_are_read_as_one(pieces in proptest::collection::vec((content(), 0..13), 1..4)) {
            let mut whole = Vec::new();
            for (content, level) in &pieces {
                let mut stream = compress(content, *level);
                open_end(&mut stream, content.len()).unwrap();
                whole.extend(stream);
            }
            whole.extend(compress(b"the end", 6));
            let mut expected: Vec<u8> = pieces.into_iter().flat_map(|(content, _)| content).collect();
            expected.extend(b"the end");
            let mut read = Vec::new();
            let mut decoder = flate2::bufread::DeflateDecoder::new(&whole[..]);
            decoder.read_to_end(&mut read).unwrap();
            prop_assert!(read == expected);
            prop_assert!(decoder.into_inner().is_empty());
        }

        #[test]
        fn what_is_no_stream_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 0..9000_usize) {
            // Whatever comes out, nothing may panic.
            if open_end(&mut bytes, size).is_ok() {
                prop_assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]));
            }
        }
    }

    #[test]
    fn a_stream_of_another_size_is_refused() {
        let content = b"some content, some more content, and some more".repeat(50);
        for level in 0..13 {
            let stream = compress(&content, level);
            assert_eq!(open_end(&mut stream.clone(), content.len()), Ok(()));
            assert_eq!(
                open_end(&mut stream.clone(), content.len() - 1),
                Err(Broken)
            );
            let mut short = stream[..stream.len() - 1].to_vec();
            assert_eq!(open_end(&mut short, content.len()), Err(Broken));
            let mut long = [&stream[..], &[0]].concat();
            assert_eq!(open_end(&mut long, content.len()), Err(Broken));
        }
    }
}
