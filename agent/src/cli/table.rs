//! Tables for people: columns as wide as their longest cell, the last one free.

use std::fmt;

/// Rows under a head.
#[derive(Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self { head: head.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the head are dropped, missing ones are empty.
    pub fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().map(|cell| cell.replace(['\n', '\r', '\t'], " ")).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.head[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut write_row = |cell_of: &dyn Fn(usize) -> String| {
            let mut line = String::new();
            for (column, width) in widths.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                line.push_str(&format!("{:width$}", cell_of(column)));
            }
            writeln!(f, "{}", line.trim_end())
        };
        write_row(&|column| self.head[column].to_owned())?;
        for row in &self.rows {
            write_row(&|column| row.get(column).cloned().unwrap_or_default())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_fit_their_longest_cell() {
        let mut table = Table::new(["A", "B"]);
        table.push(["long".to_owned(), "x\ny".to_owned()]);
        table.push(["ü".to_owned()]);
        assert_eq!(table.to_string(), "A     B\nlong  x y\nü\n");
    }
}
