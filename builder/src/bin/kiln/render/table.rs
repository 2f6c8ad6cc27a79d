//! Tables as docker prints them: columns padded to their widest cell and three blanks.

use super::out;

/// Prints a table with its heading.
pub(crate) fn print(heading: &[&str], rows: &[Vec<String>]) {
    let heading = heading.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<_> = std::iter::once(heading)
        .chain(rows.iter().cloned())
        .collect();
    out(&lines(&rows));
}

/// Rows in columns, without a line end behind the last.
pub(crate) fn lines(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widths = cells.map(|cell| cell.chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
