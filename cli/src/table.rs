//! Columns that line up.

use crate::style::{Style, Tone};

/// One cell: its text, and how it strikes the eye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell that strikes the eye as `tone` says.
    pub fn toned(text: impl ToString, tone: Tone) -> Self {
        Self { text: text.to_string(), tone }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

/// A table with a heading.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(heading: impl IntoIterator<Item = &'static str>) -> Self {
        Self { heading: heading.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row: as many cells as the heading has.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines. What is empty is shown as a dash.
    pub fn text(&self, style: Style) -> String {
        let heading = self.heading.iter().map(|text| Cell::toned(*text, Tone::Heading)).collect();
        let rows: Vec<&Vec<Cell>> = [&heading].into_iter().chain(&self.rows).collect();
        let mut widths = vec![0; self.heading.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(*row) {
                *width = (*width).max(cell.text.chars().count().max(1));
            }
        }
        let mut text = String::new();
        for row in rows {
            let last = row.len().saturating_sub(1);
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let shown = if cell.text.is_empty() { "-" } else { &cell.text };
                text.push_str(&style.paint(cell.tone, shown));
                if i < last {
                    text.extend(std::iter::repeat_n(' ', width - shown.chars().count() + 2));
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colours() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["a".into(), Cell::toned("no", Tone::Bad)]);
        table.row(["ünicode".into(), "".into()]);
        assert_eq!(table.text(Style::plain()), "NAME     STATE\na        no\nünicode  -\n");
        assert!(table.text(Style::coloured()).contains("a        \x1b[31mno\x1b[0m\n"));
    }
}
