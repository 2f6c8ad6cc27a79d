//! Unified diffs of texts that are much alike.

use super::text::printable;

/// Unchanged lines that are shown around a change.
const CONTEXT: usize = 3;
/// How far ahead lines are looked for that both texts have.
const AHEAD: usize = 64;

/// A change: lines of the old text and the lines that take their place.
struct Change {
    old: std::ops::Range<usize>,
    new: std::ops::Range<usize>,
}

/// The difference of two texts of a file, empty where there is none. It shows what a terminal may
/// show: a line with control characters or a password in an address is not as it stands in the file.
pub(crate) fn unified(name: &str, old: &str, new: &str) -> String {
    let old: Vec<&str> = old.split_inclusive('\n').collect();
    let new: Vec<&str> = new.split_inclusive('\n').collect();
    let changes = changes(&old, &new);
    if changes.is_empty() {
        return String::new();
    }
    let name = printable(name.as_bytes());
    let mut text = format!("--- {name}\n+++ {name}\n");
    let mut rest = changes.as_slice();
    while !rest.is_empty() {
        // Changes whose surroundings meet share a hunk.
        let meet = |pair: &[Change]| pair[1].old.start - pair[0].old.end <= 2 * CONTEXT;
        let length = 1 + rest.windows(2).take_while(|pair| meet(pair)).count();
        let (together, later) = rest.split_at(length);
        hunk(&mut text, &old, &new, together);
        rest = later;
    }
    text
}

/// Walks both texts; where they differ it looks for the nearest line that both have.
fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let (mut at, mut to) = (0, 0);
    while at < old.len() || to < new.len() {
        if old.get(at) == new.get(to) {
            (at, to) = (at + 1, to + 1);
            continue;
        }
        let (skipped, added) = resume(&old[at..], &new[to..]);
        match changes.last_mut() {
            Some(last) if last.old.end == at && last.new.end == to => {
                (last.old.end, last.new.end) = (at + skipped, to + added);
            }
            _ => changes.push(Change {
                old: at..at + skipped,
                new: to..to + added,
            }),
        }
        (at, to) = (at + skipped, to + added);
    }
    changes
}

/// How many lines of each text are passed over until both go on alike. Blank lines are everywhere
/// and prove nothing.
fn resume(old: &[&str], new: &[&str]) -> (usize, usize) {
    for distance in 1..=AHEAD {
        for skipped in 0..=distance {
            let added = distance - skipped;
            let (Some(one), Some(other)) = (old.get(skipped), new.get(added)) else {
                continue;
            };
            if one == other && !one.trim().is_empty() {
                return (skipped, added);
            }
        }
    }
    (old.len().min(1), new.len().min(1))
}

fn hunk(text: &mut String, old: &[&str], new: &[&str], changes: &[Change]) {
    let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
        return;
    };
    let before = first.old.start.min(CONTEXT);
    let after = (old.len() - last.old.end).min(CONTEXT);
    let range = |start: usize, end: usize| {
        // A range of no lines is named by the line before it.
        let first = if start == end { start } else { start + 1 };
        format!("{first},{}", end - start)
    };
    text.push_str(&format!(
        "@@ -{} +{} @@\n",
        range(first.old.start - before, last.old.end + after),
        range(first.new.start - before, last.new.end + after),
    ));
    let mut at = first.old.start - before;
    for change in changes {
        lines(text, ' ', &old[at..change.old.start]);
        lines(text, '-', &old[change.old.clone()]);
        lines(text, '+', &new[change.new.clone()]);
        at = change.old.end;
    }
    lines(text, ' ', &old[at..at + after]);
}

fn lines(text: &mut String, mark: char, lines: &[&str]) {
    for line in lines {
        text.push(mark);
        let content = line.trim_end_matches('\n');
        text.push_str(&printable(content.as_bytes()));
        if content.ends_with('\r') {
            text.push('\r');
        }
        text.push('\n');
        if !line.ends_with('\n') {
            text.push_str("\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_with_their_surroundings() {
        let old = "1\n2\n3\n4\nFrom\n6\n\n8\n9\n10\n11\n12\n13\n14\n15\n16\nend";
        let new = "1\n2\n3\n4\nFROM\n6\n8\n9\n10\n11\n12\n13\n14\n15\n16\nend\n";
        assert_eq!(
            unified("D", old, new),
            "--- D\n+++ D\n\
             @@ -2,9 +2,8 @@\n 2\n 3\n 4\n-From\n+FROM\n 6\n-\n 8\n 9\n 10\n\
             @@ -14,4 +13,4 @@\n 14\n 15\n 16\n-end\n\\ No newline at end of file\n+end\n"
        );
        assert_eq!(unified("D", old, old), "");
        assert_eq!(
            unified("D", "", "a\r\n"),
            "--- D\n+++ D\n@@ -0,0 +1,1 @@\n+a\r\n"
        );
        assert_eq!(
            unified("D", "a\n", "http://u:p@h\u{1b}\n"),
            "--- D\n+++ D\n@@ -1,1 +1,1 @@\n-a\n+http://u:*@h\n"
        );
    }
}
