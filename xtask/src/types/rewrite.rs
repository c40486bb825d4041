//! From kopium's output for each kind to modules: renames, keeps one of what is the same, puts what is shared apart.
//!
//! Pure: text in, types out. Which file of a module a type goes to is no matter here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result, bail};

/// Types that a library has already, with the path to import.
pub(super) const IMPORTS: &[(&str, &str)] = &[
    ("BTreeMap", "std::collections::BTreeMap"),
    ("Condition", "k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition"),
    ("CustomResource", "kube::CustomResource"),
    ("Deserialize", "serde::Deserialize"),
    ("IntOrString", "k8s_openapi::apimachinery::pkg::util::intstr::IntOrString"),
    ("LabelSelector", "k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector"),
    ("Serialize", "serde::Serialize"),
];

/// Types that are generated and dropped for those of [`IMPORTS`].
const OF_LIBRARIES: [&str; 2] = ["LabelSelector", "LabelSelectorRequirement"];

/// Module of what several kinds share.
pub(super) const COMMON: &str = "common";

/// A module and its types.
#[derive(Debug)]
pub(super) struct Module<'a> {
    pub(super) name: &'a str,
    pub(super) items: Vec<Item>,
}

/// A type's definition with its docs and attributes.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) text: String,
}

impl Item {
    /// Its lines without docs: what makes it the same as another.
    fn code(&self) -> String {
        let lines = self.text.lines().map(str::trim).filter(|line| !line.starts_with("///"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Whether it is the root of a kind.
    fn is_root(&self) -> bool {
        self.text.contains("#[kube(group")
    }

    /// The names that it declares: its own, and that of the type which kube derives from a root, `root` or else `kind`.
    pub(super) fn declared(&self) -> Vec<&str> {
        let value =
            |key: &str| self.text.split_once(&format!("{key} = \"")).and_then(|(_, rest)| rest.split('"').next());
        let derived = if self.is_root() { value("root").or_else(|| value("kind")) } else { None };
        [&*self.name].into_iter().chain(derived).collect()
    }

    /// The words of its code, among them the types that it needs. A line of one word is a variant, which needs none.
    pub(super) fn mentioned(&self) -> HashSet<String> {
        let code = self.code();
        let lines = code.lines().filter(|line| !line.trim_end_matches(',').chars().all(is_word));
        lines.flat_map(|line| line.split(|c| !is_word(c))).map(str::to_owned).collect()
    }
}

/// Makes modules of kopium's outputs, given as (module, output), and [`COMMON`], the first.
///
/// # Errors
/// Two types that get one name differ: the table of names is wrong for these CRDs.
pub(super) fn modules<'a>(outputs: &[(&'a str, String)], names: &HashMap<String, &str>) -> Result<Vec<Module<'a>>> {
    let mut users: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut first: HashMap<String, Item> = HashMap::new();
    let mut kinds = Vec::new();
    for (module, output) in outputs {
        let mut items = Vec::new();
        for item in renamed(output, names)? {
            if let Some(same) = first.get(&item.name)
                && same.code() != item.code()
            {
                bail!("{} is not the same everywhere:\n{}\nand\n{}", item.name, same.code(), item.code());
            }
            first.entry(item.name.clone()).or_insert_with(|| item.clone());
            if users.entry(item.name.clone()).or_default().insert(module) {
                items.push(item);
            }
        }
        kinds.push((*module, items));
    }
    let is_common = |name: &str| users.get(name).is_some_and(|users| users.len() > 1);
    let common = users.keys().filter(|name| is_common(name)).map(|name| first[name].clone()).collect();
    let mut modules = vec![Module { name: COMMON, items: common }];
    for (name, items) in kinds {
        modules.push(Module { name, items: items.into_iter().filter(|item| !is_common(&item.name)).collect() });
    }
    Ok(modules)
}

/// The types of an output under our names, without those that a library has and those that nothing uses.
fn renamed(output: &str, names: &HashMap<String, &str>) -> Result<Vec<Item>> {
    // `//` lines are kopium's header; its own docs are `///`.
    let lines = output.lines().filter(|line| !line.starts_with("// ")).map(str::trim_end);
    let body = lines.collect::<Vec<_>>().join("\n");
    let texts: Vec<_> = body.trim().split_inclusive("\n}\n").map(str::trim).collect();
    let declared = texts.iter().map(|text| declared_name(text)).collect::<Result<HashSet<_>>>()?;
    let mut items = Vec::new();
    for text in &texts {
        let text = map_words(text, |word| if declared.contains(word) { names.get(word).copied() } else { None });
        items.push(Item { name: declared_name(&text)?.to_owned(), text });
    }
    let mut uses: HashMap<String, usize> = HashMap::new();
    for item in &items {
        map_words(&item.code(), |word| {
            *uses.entry(word.to_owned()).or_default() += 1;
            None
        });
    }
    // kopium makes an enum for a set of integers, whose field stays an integer.
    items.retain(|item| !OF_LIBRARIES.contains(&&*item.name) && (item.is_root() || uses[&item.name] > 1));
    Ok(items)
}

fn declared_name(text: &str) -> Result<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum ")));
    line.and_then(|rest| rest.split(' ').next())
        .with_context(|| format!("kopium wrote something that is no type:\n{text}"))
}

/// Replaces whole words; docs stay as they are.
fn map_words<'a>(text: &str, mut map: impl FnMut(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("///") {
            out.push_str(line);
            continue;
        }
        let mut rest = line;
        while let Some(begin) = rest.find(is_word) {
            let end = rest[begin..].find(|c| !is_word(c)).map_or(rest.len(), |length| begin + length);
            out.push_str(&rest[..begin]);
            out.push_str(map(&rest[begin..end]).unwrap_or(&rest[begin..end]));
            rest = &rest[end..];
        }
        out.push_str(rest);
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(fields: &str) -> String {
        format!(
            "// kopium command\n\n#[kube(group = \"g\")]\npub struct ASpec {{\n    pub x: AX,\n}}\n\n/// AX is mentioned.\npub struct AX {{\n{fields}}}\n"
        )
    }

    #[test]
    fn the_same_type_of_two_kinds_becomes_one() {
        let names = HashMap::from([("AX".to_owned(), "X"), ("BX".to_owned(), "X")]);
        let second = output("    pub y: i64,\n").replace('A', "B");
        let modules = modules(&[("a", output("    pub y: i64,\n")), ("b", second)], &names).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name).collect();
        assert_eq!(names, [COMMON, "a", "b"]);
        assert!(modules[0].items[0].text.contains("/// AX is mentioned.\npub struct X {"));
        assert!(modules[1].items[0].text.contains("pub struct ASpec {\n    pub x: X,"));
        assert_eq!((modules[0].items.len(), modules[1].items.len(), modules[2].items.len()), (1, 1, 1));
    }

    #[test]
    fn a_root_declares_its_kind_too() {
        let declared = |attribute: &str| {
            let text = format!("#[kube(group = \"g\", {attribute}, plural = \"as\")]\npub struct ASpec {{}}");
            Item { name: "ASpec".to_owned(), text }.declared().join(" ")
        };
        assert_eq!(declared("kind = \"AB\", root = \"Ab\""), "ASpec Ab");
        assert_eq!(declared("kind = \"A\""), "ASpec A");
    }

    #[test]
    fn different_types_never_become_one() {
        let names = HashMap::from([("AX".to_owned(), "X"), ("BX".to_owned(), "X")]);
        let second = output("    pub y: String,\n").replace('A', "B");
        let error = modules(&[("a", output("    pub y: i64,\n")), ("b", second)], &names).unwrap_err();
        assert!(error.to_string().starts_with("X is not the same everywhere"), "{error}");
    }

    #[test]
    fn what_nothing_uses_is_dropped() {
        let unused = output("").replace("pub x: AX", "pub x: i64");
        let modules = modules(&[("a", unused)], &HashMap::new()).unwrap();
        assert_eq!(modules[1].items.len(), 1);
    }
}
