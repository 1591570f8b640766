//! Tables for the terminal.

/// Writes rows under their titles, each column as wide as its widest cell.
pub fn align<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let titles = titles.map(str::to_owned);
    let widths = widths(&titles, rows);
    let under = widths.map(|width| "-".repeat(width));
    let all = [&titles, &under].into_iter().chain(rows);
    all.map(|row| line(row, &widths)).collect()
}

fn widths<const N: usize>(titles: &[String; N], rows: &[[String; N]]) -> [usize; N] {
    std::array::from_fn(|column| {
        let cells = rows.iter().chain([titles]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    })
}

fn line<const N: usize>(row: &[String; N], widths: &[usize; N]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    let line = cells.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_words() {
        let rows = [["x".to_owned(), "1".to_owned()], ["größer".to_owned(), String::new()]];
        let expected = "a       b\n------  -\nx       1\ngrößer\n";
        assert_eq!(align(["a", "b"], &rows), expected);
    }
}
