//! Reads the Prometheus text format as far as tests need it.

/// Sum of all series of `name` whose labels contain every text of `labels`; nothing when there is no such series.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (series, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ').map(|_| rest)?),
            };
            let value = value.split_whitespace().next()?.parse().ok()?;
            labels.iter().all(|label| series.contains(label)).then_some(value)
        })
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_chosen_by_name_and_labels() {
        let text = "# TYPE a counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\"} 4\na_total_more 5\nopen 7\n";
        assert_eq!(sum(text, "a_total", &[]), Some(7.0));
        assert_eq!(sum(text, "a_total", &["x=\"1\""]), Some(3.0));
        assert_eq!(sum(text, "open", &[]), Some(7.0));
        assert_eq!(sum(text, "absent", &[]), None);
    }
}
