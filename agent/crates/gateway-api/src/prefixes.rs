//! Lists of prefixes: written in an object, or in the values of ConfigMaps.
//!
//! A line that is no prefix is named and left out; the others count. A bare address is a prefix of its own.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use tidegate_model::{ObjectName, SourceList};

use crate::api::ConfigMapReference;

/// At most this many faulty lines of one ConfigMap are named in a message; the rest is counted.
const MAX_NAMED_FAULTS: usize = 3;

/// Where a prefix of a list was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this index of the object's own list.
    Inline(usize),
    /// On this line (from 1) of a key of a ConfigMap.
    Line { config_map: ObjectName, key: String, line: usize },
}

/// Reads a prefix or an address; host bits are cleared, an IPv4-mapped IPv6 address becomes IPv4.
pub(crate) fn read_prefix(text: &str) -> Option<IpNet> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    text.parse::<IpNet>().ok().map(|prefix| prefix.trunc())
}

/// Name of the ConfigMap that a reference means.
pub(crate) fn config_map_name(reference: &ConfigMapReference) -> ObjectName {
    ObjectName::new(reference.namespace.as_deref().unwrap_or("default"), &reference.name)
}

/// Takes an entry; its place is made only when somebody asks, since a list may be long.
pub(crate) type Take<'a> = dyn FnMut(&dyn Fn() -> Place, IpNet) + 'a;

/// Goes over a list and the ConfigMaps it refers to. `take` gets each entry with its place; `fault` what is wrong.
pub(crate) fn for_each_entry<'a>(
    field: &str,
    inline: &[String],
    references: &[ConfigMapReference],
    find: &dyn Fn(&ObjectName) -> Option<&'a Arc<ConfigMap>>,
    take: &mut Take<'_>,
    fault: &mut dyn FnMut(String),
) {
    for (index, text) in inline.iter().enumerate() {
        match read_prefix(text) {
            Some(prefix) => take(&|| Place::Inline(index), prefix),
            None => fault(format!(
                "spec.sources.{field}[{index}]: {text:?} is not a prefix, it is left out: write it like 192.0.2.0/24 or 2001:db8::/32"
            )),
        }
    }
    for (index, reference) in references.iter().enumerate() {
        let name = config_map_name(reference);
        let place = format!("spec.sources.{field}From[{index}]");
        let Some(config_map) = find(&name) else {
            fault(format!("{place}: ConfigMap/{name} does not exist: create it or remove the reference"));
            continue;
        };
        let data = config_map.data.iter().flatten();
        let mut chosen = data.filter(|(key, _)| reference.key.as_ref().is_none_or(|wanted| wanted == *key)).peekable();
        if let (Some(key), None) = (&reference.key, chosen.peek()) {
            fault(format!("{place}: ConfigMap/{name} has no key {key:?}: add it there or change the reference"));
        }
        for (key, text) in chosen {
            read_lines(&name, key, text, take, fault);
        }
    }
}

fn read_lines(name: &ObjectName, key: &str, text: &str, take: &mut Take<'_>, fault: &mut dyn FnMut(String)) {
    let mut faults = 0;
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match read_prefix(entry) {
            Some(prefix) => {
                take(&|| Place::Line { config_map: name.clone(), key: key.to_owned(), line: index + 1 }, prefix);
            }
            None => {
                faults += 1;
                if faults <= MAX_NAMED_FAULTS {
                    fault(format!(
                        "ConfigMap/{name} key {key:?} line {}: {entry:?} is not a prefix, it is left out",
                        index + 1
                    ));
                }
            }
        }
    }
    if faults > MAX_NAMED_FAULTS {
        fault(format!("ConfigMap/{name} key {key:?}: {} more lines are no prefixes", faults - MAX_NAMED_FAULTS));
    }
}

/// The prefixes of a list, with what is wrong in it.
pub(crate) fn read_list<'a>(
    field: &str,
    inline: &[String],
    references: &[ConfigMapReference],
    find: &dyn Fn(&ObjectName) -> Option<&'a Arc<ConfigMap>>,
) -> (SourceList, Vec<String>) {
    let mut prefixes = Vec::new();
    let mut faults = Vec::new();
    for_each_entry(
        field,
        inline,
        references,
        find,
        &mut |_, prefix| {
            prefixes.push(prefix);
        },
        &mut |fault| faults.push(fault),
    );
    (prefixes.into(), faults)
}
