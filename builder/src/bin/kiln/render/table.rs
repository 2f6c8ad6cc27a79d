//! Tables as docker prints them: columns padded to their widest cell and three blanks.

use super::out;

/// Prints a table with its heading.
pub(crate) fn print(heading: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([heading[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    out(&line(
        &heading
            .iter()
            .map(|&cell| cell.to_owned())
            .collect::<Vec<_>>(),
    ));
    for row in rows {
        out(&line(row));
    }
}
