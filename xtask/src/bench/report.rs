//! What a benchmark found: a Markdown table for people, raw samples as JSON.
//!
//! Owner: each benchmark makes one. Invariants: raw samples go with the figures; the command and
//! the machine stand beside them. Absent: verdicts; the page says what was met and what was not.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::BenchError;
use super::machine::Machine;

#[derive(Debug)]
pub(super) struct Report {
    /// The benchmark's name, and that of its file.
    pub(super) name: &'static str,
    pub(super) headings: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    /// Sentences that belong to the table.
    pub(super) remarks: Vec<String>,
    pub(super) raw: Vec<Value>,
}

impl Report {
    pub(super) fn new(name: &'static str, headings: &[&'static str]) -> Report {
        let headings = headings.to_vec();
        Report { name, headings, rows: Vec::new(), remarks: Vec::new(), raw: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.headings.len(), "a row has a cell for each heading");
        self.rows.push(cells.to_vec());
    }

    pub(super) fn remark(&mut self, sentence: impl Into<String>) {
        self.remarks.push(sentence.into());
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let headings: Vec<String> = self.headings.iter().map(|cell| (*cell).to_string()).collect();
        let mut text = line(&headings) + &line(&vec!["---".to_string(); headings.len()]);
        for row in &self.rows {
            text.push_str(&line(row));
        }
        for remark in &self.remarks {
            text.push_str(&format!("\n{remark}"));
        }
        text
    }

    /// Into `folder`/NAME.json.
    pub(super) fn write(
        &self,
        folder: &Path,
        command: &str,
        machine: &Machine,
    ) -> Result<PathBuf, BenchError> {
        let path = folder.join(format!("{}.json", self.name));
        let all = json!({
            "benchmark": self.name,
            "command": command,
            "machine": machine.json(),
            "headings": self.headings,
            "rows": self.rows,
            "remarks": self.remarks,
            "samples": self.raw,
        });
        let text = serde_json::to_string_pretty(&all)? + "\n";
        fs::write(&path, text).map_err(BenchError::file("write", &path))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_with_its_remarks() {
        let mut report = Report::new("x", &["clients", "acks/s"]);
        report.row(["1".to_string(), "300".to_string()]);
        report.remark("By hand.");
        let expected = "| clients | acks/s |\n| --- | --- |\n| 1 | 300 |\n\nBy hand.";
        assert_eq!(report.markdown(), expected);
    }
}
