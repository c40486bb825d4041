//! Matches of an HTTPRoute's rule.

use std::sync::Arc;

use regex::Regex;
use tidegate_model::{HeaderMatch, Match, PathMatch, QueryMatch, ValueMatch};

use crate::generated::{
    common::{MatchType, NamedMatch},
    http_route::{HttpMethod, HttpPathMatch, HttpRouteMatch, PathMatchType},
};

/// Reads the matches of a rule; one that makes no sense is left out and named. A rule without any matches everything.
pub(crate) fn read_matches(field: &str, matches: Option<&[HttpRouteMatch]>, faults: &mut Vec<String>) -> Vec<Match> {
    let default = [HttpRouteMatch::default()];
    let matches = matches.filter(|matches| !matches.is_empty()).unwrap_or(&default);
    let mut read = Vec::with_capacity(matches.len());
    for (index, found) in matches.iter().enumerate() {
        let field = format!("{field}.matches[{index}]");
        match read_match(&field, found) {
            Ok(found) => read.push(found),
            Err(fault) => faults.push(format!("{fault}; the match is left out")),
        }
    }
    read
}

fn read_match(field: &str, found: &HttpRouteMatch) -> Result<Match, String> {
    let query_field = format!("{field}.queryParams");
    let mut query: Vec<QueryMatch> = Vec::new();
    for (index, parameter) in found.query_params.iter().flatten().enumerate() {
        // Gateway API: of several entries of one name only the first counts.
        if query.iter().all(|earlier| *earlier.name != *parameter.name) {
            query.push(QueryMatch {
                name: Arc::from(parameter.name.as_str()),
                value: read_value(&format!("{query_field}[{index}]"), parameter)?,
            });
        }
    }
    Ok(Match {
        path: read_path(&format!("{field}.path"), found.path.as_ref())?,
        method: found.method.as_ref().map(|method| Arc::from(method_name(method))),
        headers: read_headers(&format!("{field}.headers"), found.headers.as_deref())?,
        query,
    })
}

/// Reads conditions on header fields. Gateway API: of several entries of one name, whatever their case, only the first counts.
pub(super) fn read_headers(field: &str, headers: Option<&[NamedMatch]>) -> Result<Vec<HeaderMatch>, String> {
    let mut read: Vec<HeaderMatch> = Vec::new();
    for (index, header) in headers.unwrap_or_default().iter().enumerate() {
        let field = format!("{field}[{index}]");
        if !super::filters::is_field_name(&header.name) {
            return Err(format!(
                "{field}.name: {:?} is not the name of a header field: write letters, digits and '-'",
                header.name
            ));
        }
        let name = header.name.to_ascii_lowercase();
        if read.iter().all(|earlier| *earlier.name != *name) {
            read.push(HeaderMatch { name: Arc::from(name), value: read_value(&field, header)? });
        }
    }
    Ok(read)
}

fn read_value(field: &str, found: &NamedMatch) -> Result<ValueMatch, String> {
    let value = Arc::from(found.value.as_str());
    match found.r#type {
        None | Some(MatchType::Exact) => Ok(ValueMatch::Exact(value)),
        Some(MatchType::RegularExpression) => {
            check_regex(&format!("{field}.value"), &found.value)?;
            Ok(ValueMatch::Regex(value))
        }
    }
}

fn read_path(field: &str, path: Option<&HttpPathMatch>) -> Result<PathMatch, String> {
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let type_ = path.and_then(|path| path.r#type.as_ref()).unwrap_or(&PathMatchType::PathPrefix);
    if matches!(type_, PathMatchType::RegularExpression) {
        check_regex(&format!("{field}.value"), value)?;
        return Ok(PathMatch::Regex(Arc::from(value)));
    }
    check_path(&format!("{field}.value"), value)?;
    Ok(match type_ {
        PathMatchType::Exact => PathMatch::Exact(Arc::from(value)),
        _ => PathMatch::Prefix(Arc::from(trim_prefix(value))),
    })
}

/// `/a/` takes the same paths as `/a`.
fn trim_prefix(value: &str) -> &str {
    match value.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    }
}

fn check_path(field: &str, value: &str) -> Result<(), String> {
    let is_path = value.starts_with('/') && value.bytes().all(|byte| byte.is_ascii_graphic());
    let has_dots = value.split('/').any(|part| matches!(part, "." | ".."));
    if !is_path || value.contains("//") || has_dots || value.contains(['#', '?']) {
        return Err(format!(
            "{field}: {value:?} is not a path: start with '/', without '//', '.', '..', '?', '#' and characters that need %-escapes"
        ));
    }
    Ok(())
}

/// Regular expressions match a whole text.
pub(super) fn check_regex(field: &str, pattern: &str) -> Result<(), String> {
    Regex::new(&format!("^(?:{pattern})$")).map(drop).map_err(|error| {
        let reason = error.to_string();
        let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("{field}: {pattern:?} is not a regular expression: {last}: correct it (RE2 syntax)")
    })
}

fn method_name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "GET",
        HttpMethod::Head => "HEAD",
        HttpMethod::Post => "POST",
        HttpMethod::Put => "PUT",
        HttpMethod::Delete => "DELETE",
        HttpMethod::Connect => "CONNECT",
        HttpMethod::Options => "OPTIONS",
        HttpMethod::Trace => "TRACE",
        HttpMethod::Patch => "PATCH",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(type_: PathMatchType, value: &str) -> HttpRouteMatch {
        HttpRouteMatch {
            path: Some(HttpPathMatch { r#type: Some(type_), value: Some(value.to_owned()) }),
            ..HttpRouteMatch::default()
        }
    }

    #[test]
    fn a_rule_without_matches_takes_every_request() {
        for matches in [None, Some(&[][..])] {
            let read = read_matches("spec.rules[0]", matches, &mut Vec::new());
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].path, PathMatch::Prefix(Arc::from("/")));
        }
    }

    #[test]
    fn a_match_that_makes_no_sense_is_left_out_and_the_others_stay() {
        let mut faults = Vec::new();
        let matches = [
            path(PathMatchType::RegularExpression, "/a(b"),
            path(PathMatchType::Exact, "/ok"),
            path(PathMatchType::PathPrefix, "no-slash"),
            path(PathMatchType::PathPrefix, "/a/../b"),
        ];
        let read = read_matches("spec.rules[2]", Some(&matches), &mut faults);
        assert_eq!(read.len(), 1);
        assert_eq!(faults.len(), 3);
        assert!(faults[0].contains("spec.rules[2].matches[0].path.value"), "{}", faults[0]);
    }

    #[test]
    fn a_prefix_loses_its_trailing_slash() {
        let matches = [path(PathMatchType::PathPrefix, "/a/b/"), path(PathMatchType::PathPrefix, "/")];
        let read = read_matches("", Some(&matches), &mut Vec::new());
        assert_eq!(read[0].path, PathMatch::Prefix(Arc::from("/a/b")));
        assert_eq!(read[1].path, PathMatch::Prefix(Arc::from("/")));
    }

    #[test]
    fn of_equal_header_names_only_the_first_counts() {
        let header =
            |name: &str, value: &str| NamedMatch { name: name.to_owned(), r#type: None, value: value.to_owned() };
        let read = read_headers("", Some(&[header("Version", "one"), header("version", "two")])).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0], HeaderMatch { name: Arc::from("version"), value: ValueMatch::Exact(Arc::from("one")) });
    }
}
