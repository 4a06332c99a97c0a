//! Tables for a terminal: a heading, left-aligned columns, two spaces between, no lines.
//!
//! Invariants: cells are escaped here, so no caller can forget it; the last column is not padded.
//! Absent: wrapping and colours.

use super::scrub;

#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    /// Without the newline at the end.
    pub(crate) fn render(&self) -> String {
        aligned(&self.rows).join("\n")
    }
}

/// Rows as lines whose columns line up; cells are escaped.
pub(crate) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let rows: Vec<[_; COLUMNS]> =
        rows.iter().map(|row| row.each_ref().map(|cell| scrub::line(cell))).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[_; COLUMNS]| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_line_up_and_cells_cannot_break_the_table() {
        let mut table = Table::new(["NAME", "COUNT", "TEXT"]);
        table.row(["grüße".into(), "1".into(), "a\nb\u{1b}[2J".into()]);
        table.row(["x".into(), "1000000".into(), String::new()]);
        expect![[r"
            NAME   COUNT    TEXT
            grüße  1        a\nb\u{1b}[2J
            x      1000000"]]
        .assert_eq(&table.render());
    }
}
