//! Several texts in Prometheus' exposition format as one: each family's HELP and TYPE stands once, with all samples of
//! the family behind it, as the format demands. Pure.

use std::collections::HashMap;

/// Merges texts. A family keeps the HELP and TYPE of the first text that has it. Lines that are neither comment nor
/// sample are kept where they cannot harm: as samples of a family of their own name.
pub(super) fn merge<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut families: Vec<Family<'a>> = Vec::new();
    let mut by_name: HashMap<&'a str, usize> = HashMap::new();
    let mut find = |name: &'a str, families: &mut Vec<Family<'a>>| {
        *by_name.entry(name).or_insert_with(|| {
            families.push(Family::default());
            families.len() - 1
        })
    };
    let mut length = 0;
    for text in texts {
        length += text.len();
        let mut current = "";
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(comment) = line.strip_prefix('#') {
                let mut words = comment.split_ascii_whitespace();
                let (keyword, name) = (words.next(), words.next());
                let (Some(keyword), Some(name)) = (keyword, name) else { continue };
                let index = find(name, &mut families);
                match keyword {
                    "HELP" => families[index].help.get_or_insert(line),
                    "TYPE" => families[index].type_.get_or_insert(line),
                    _ => continue,
                };
                current = name;
                continue;
            }
            let name = line.split(['{', ' ', '\t']).next().unwrap_or_default();
            let is_part =
                name.strip_prefix(current).is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"));
            let family = if !current.is_empty() && is_part { current } else { name };
            let index = find(family, &mut families);
            families[index].samples.push(line);
        }
    }
    let mut merged = String::with_capacity(length);
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        for line in family.help.iter().chain(&family.type_).chain(&family.samples) {
            merged.push_str(line);
            merged.push('\n');
        }
    }
    merged
}

#[derive(Default)]
struct Family<'a> {
    help: Option<&'a str>,
    type_: Option<&'a str>,
    samples: Vec<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn a_family_of_two_workers_stands_once() {
        let one = "# HELP r requests\n# TYPE r counter\nr{d=\"a\"} 1\n# TYPE h histogram\nh_bucket{d=\"a\",le=\"+Inf\"} 2\nh_sum{d=\"a\"} 3\nh_count{d=\"a\"} 2\n";
        let two = "# HELP r other words\n# TYPE r counter\nr{d=\"b\"} 4\n# TYPE h histogram\nh_bucket{d=\"b\",le=\"+Inf\"} 5\nh_sum{d=\"b\"} 6\nh_count{d=\"b\"} 5\n";
        assert_eq!(
            merge([one, two]),
            "# HELP r requests\n# TYPE r counter\nr{d=\"a\"} 1\nr{d=\"b\"} 4\n# TYPE h histogram\nh_bucket{d=\"a\",le=\"+Inf\"} 2\nh_sum{d=\"a\"} 3\nh_count{d=\"a\"} 2\nh_bucket{d=\"b\",le=\"+Inf\"} 5\nh_sum{d=\"b\"} 6\nh_count{d=\"b\"} 5\n"
        );
    }

    #[test]
    fn odd_lines_break_nothing() {
        assert_eq!(merge(["# EOF\n#\n# HELP lonely\n\nx 1\n", "x 2\ny_sum 3\n"]), "x 1\nx 2\ny_sum 3\n");
    }
}
