//! Tables for a terminal: a heading, left-aligned columns, two spaces between, no lines.
//!
//! Invariants: cells are escaped here, so no caller can forget it; the last column is not padded.
//! Absent: wrapping and colours.

use super::scrub;

#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const COLUMNS: usize>(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).into()] }
    }

    pub(crate) fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        assert_eq!(COLUMNS, self.rows[0].len(), "each row has a cell for each heading");
        self.rows.push(cells.into());
    }

    /// Without the newline at the end.
    pub(crate) fn render(&self) -> String {
        aligned(&self.rows).join("\n")
    }
}

/// Rows of equal length as lines whose columns line up; cells are escaped.
pub(crate) fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| scrub::line(cell)).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<_>| {
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
