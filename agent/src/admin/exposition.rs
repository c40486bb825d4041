//! Several texts in Prometheus' exposition format as one: each family's HELP and TYPE stands once, with all samples of
//! the family behind it, as the format demands. Pure; samples are moved as they are, not copied.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;

use crate::state::Pieces;

/// Merges texts. A family keeps the HELP and TYPE of the first text that has it. Lines that are neither comment nor
/// sample are kept where they cannot harm: as samples of a family of their own name.
pub(super) fn merge(texts: impl IntoIterator<Item = Pieces>) -> Vec<Bytes> {
    let mut families = Families::default();
    for text in texts {
        // A family goes on from one piece into the next.
        let mut current = None;
        for mut piece in text {
            if !piece.ends_with('\n') {
                piece.push('\n');
            }
            families.take(piece, &mut current);
        }
    }
    let shown = families.list.into_iter().filter(|family| !family.samples.is_empty());
    shown.flat_map(|family| family.help.into_iter().chain(family.type_).chain(family.samples)).collect()
}

#[derive(Default)]
struct Families {
    /// In the order in which they were found.
    list: Vec<Family>,
    by_name: HashMap<String, usize>,
}

#[derive(Default)]
struct Family {
    name: String,
    help: Option<Bytes>,
    type_: Option<Bytes>,
    /// Runs of lines.
    samples: Vec<Bytes>,
}

/// What a line is to its family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Help,
    Type,
    Sample,
}

impl Families {
    /// Takes a piece; `current` is the family whose HELP or TYPE came last.
    fn take(&mut self, piece: String, current: &mut Option<usize>) {
        let mut runs: Vec<(usize, Part, Range<usize>)> = Vec::new();
        let mut end = 0;
        for line in piece.split_inclusive('\n') {
            let begin = end;
            end += line.len();
            let Some((part, name)) = read_line(line) else { continue };
            let index = match part {
                Part::Help | Part::Type => *current.insert(self.find(name)),
                Part::Sample => {
                    let of_current = current.filter(|&index| self.list[index].has_sample(name));
                    of_current.unwrap_or_else(|| self.find(name))
                }
            };
            match runs.last_mut() {
                Some((last, Part::Sample, run)) if *last == index && part == Part::Sample && run.end == begin => {
                    run.end = end;
                }
                _ => runs.push((index, part, begin..end)),
            }
        }
        let piece = Bytes::from(piece);
        for (index, part, run) in runs {
            let (family, lines) = (&mut self.list[index], piece.slice(run));
            match part {
                Part::Help => {
                    family.help.get_or_insert(lines);
                }
                Part::Type => {
                    family.type_.get_or_insert(lines);
                }
                Part::Sample => family.samples.push(lines),
            }
        }
    }

    fn find(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let index = self.list.len();
        self.list.push(Family { name: name.to_owned(), ..Family::default() });
        self.by_name.insert(name.to_owned(), index);
        index
    }
}

impl Family {
    /// Whether samples of that name are the family's, as those of a histogram are.
    fn has_sample(&self, name: &str) -> bool {
        name.strip_prefix(&*self.name).is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
    }
}

/// What a line is, and the name that stands in it; `None` for one that says nothing.
fn read_line(line: &str) -> Option<(Part, &str)> {
    if line.trim().is_empty() {
        return None;
    }
    let Some(comment) = line.strip_prefix('#') else {
        return Some((Part::Sample, line.split(['{', ' ', '\t', '\n']).next().unwrap_or_default()));
    };
    let mut words = comment.split_ascii_whitespace();
    match (words.next()?, words.next()?) {
        ("HELP", name) => Some((Part::Help, name)),
        ("TYPE", name) => Some((Part::Type, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Pieces;

    fn merge(texts: &[&[&str]]) -> String {
        let texts = texts.iter().map(|pieces| pieces.iter().map(|&piece| piece.to_owned()).collect::<Pieces>());
        String::from_utf8(super::merge(texts).concat()).unwrap()
    }

    #[test]
    fn a_family_of_two_workers_stands_once() {
        let one = "# HELP r requests\n# TYPE r counter\nr{d=\"a\"} 1\n# TYPE h histogram\nh_bucket{d=\"a\",le=\"+Inf\"} 2\nh_sum{d=\"a\"} 3\nh_count{d=\"a\"} 2\n";
        let two = "# HELP r other words\n# TYPE r counter\nr{d=\"b\"} 4\n# TYPE h histogram\nh_bucket{d=\"b\",le=\"+Inf\"} 5\nh_sum{d=\"b\"} 6\nh_count{d=\"b\"} 5\n";
        let merged = "# HELP r requests\n# TYPE r counter\nr{d=\"a\"} 1\nr{d=\"b\"} 4\n# TYPE h histogram\nh_bucket{d=\"a\",le=\"+Inf\"} 2\nh_sum{d=\"a\"} 3\nh_count{d=\"a\"} 2\nh_bucket{d=\"b\",le=\"+Inf\"} 5\nh_sum{d=\"b\"} 6\nh_count{d=\"b\"} 5\n";
        assert_eq!(merge(&[&[one], &[two]]), merged);
        // Wherever a text is cut, the same comes of it.
        for (end, _) in one.match_indices('\n') {
            let (head, tail) = one.split_at(end + 1);
            assert_eq!(merge(&[&[head, tail], &[two]]), merged);
        }
    }

    #[test]
    fn odd_lines_break_nothing() {
        assert_eq!(merge(&[&["# EOF\n#\n# HELP lonely\n\nx 1\n"], &["x 2\ny_sum 3"], &[""]]), "x 1\nx 2\ny_sum 3\n");
    }
}
