//! What a match asks for beside the path: method, header fields, query parameters, compiled so that a request parses
//! nothing twice.

use std::sync::Arc;

use http::Method;
use smallvec::SmallVec;
use tidegate_model::{Match, ValueMatch};

use super::{query::find_parameter, regex::WholeRegex};
use crate::http::head::RequestHead;

/// Bytes of a joined header value that are kept on the stack.
const JOINED_ON_STACK: usize = 256;

/// Compiled conditions of one match, which must all hold.
#[derive(Debug)]
pub(crate) struct Conditions {
    method: Option<Method>,
    headers: Vec<(Arc<str>, Value)>,
    query: Vec<(Arc<str>, Value)>,
}

#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(WholeRegex),
}

impl Conditions {
    /// Compiles a match; `None` when it asks for nothing but a path.
    ///
    /// # Errors
    /// Text for the object's owner when a method or a regular expression is not valid.
    pub(super) fn compile(source: &Match) -> Result<Option<Self>, String> {
        if source.method.is_none() && source.headers.is_empty() && source.query.is_empty() {
            return Ok(None);
        }
        let method = source
            .method
            .as_ref()
            .map(|method| Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method")))
            .transpose()?;
        let headers = source.headers.iter().map(|header| compile_value(&header.name, &header.value));
        let query = source.query.iter().map(|parameter| compile_value(&parameter.name, &parameter.value));
        Ok(Some(Self { method, headers: headers.collect::<Result<_, _>>()?, query: query.collect::<Result<_, _>>()? }))
    }

    /// Whether a request fulfils them.
    pub(super) fn is_match(&self, head: &RequestHead) -> bool {
        self.method.as_ref().is_none_or(|method| *method == head.method)
            && self.headers.iter().all(|(name, value)| value.is_match_header(name, head))
            && (self.query.is_empty() || {
                let query = head.query().unwrap_or_default();
                self.query
                    .iter()
                    .all(|(name, value)| find_parameter(query, name).is_some_and(|actual| value.is_match(&actual)))
            })
    }
}

fn compile_value(name: &Arc<str>, value: &ValueMatch) -> Result<(Arc<str>, Value), String> {
    let value = match value {
        ValueMatch::Exact(text) => Value::Exact(text.clone()),
        ValueMatch::Regex(pattern) => Value::Regex(WholeRegex::new(pattern)?),
    };
    Ok((name.clone(), value))
}

impl Value {
    fn is_match(&self, actual: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == actual,
            Self::Regex(regex) => regex.is_match(actual),
        }
    }

    fn is_match_header(&self, name: &str, head: &RequestHead) -> bool {
        let mut values = head.headers.values(name);
        let Some(first) = values.next() else { return false };
        let Some(second) = values.next() else { return self.is_match(first) };
        let mut joined = SmallVec::<[u8; JOINED_ON_STACK]>::from_slice(first);
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value);
        }
        self.is_match(&joined)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::{HeaderMatch, PathMatch, QueryMatch};

    use super::*;

    fn source() -> Match {
        Match { path: PathMatch::Prefix("/".into()), method: None, headers: vec![], query: vec![] }
    }

    #[test]
    fn a_match_on_the_path_alone_has_none() {
        assert!(Conditions::compile(&source()).unwrap().is_none());
    }

    #[test]
    fn repeated_fields_count_as_one_joined_value() {
        let header = HeaderMatch { name: "x-a".into(), value: ValueMatch::Exact("1,2".into()) };
        let conditions = Conditions::compile(&Match { headers: vec![header], ..source() }).unwrap().unwrap();
        let mut head = RequestHead::default();
        assert!(!conditions.is_match(&head));
        head.headers.append("X-A", "1");
        assert!(!conditions.is_match(&head));
        head.headers.append("x-a", "2");
        assert!(conditions.is_match(&head));
    }

    #[test]
    fn method_and_query_must_both_hold() {
        let query = QueryMatch { name: "v".into(), value: ValueMatch::Regex("[0-9]+".into()) };
        let source = Match { method: Some("PUT".into()), query: vec![query], ..source() };
        let conditions = Conditions::compile(&source).unwrap().unwrap();
        let mut head = RequestHead::default();
        head.method = Method::PUT;
        head.fill_target("/?v=12");
        assert!(conditions.is_match(&head));
        head.fill_target("/?v=12x");
        assert!(!conditions.is_match(&head));
        head.fill_target("/?v=12");
        head.method = Method::GET;
        assert!(!conditions.is_match(&head));
    }

    #[test]
    fn what_cannot_be_compiled_is_named() {
        let method = Conditions::compile(&Match { method: Some("A B".into()), ..source() });
        assert!(method.unwrap_err().contains("A B"));
        let header = HeaderMatch { name: "x".into(), value: ValueMatch::Regex("(".into()) };
        assert!(Conditions::compile(&Match { headers: vec![header], ..source() }).unwrap_err().contains('('));
    }
}
