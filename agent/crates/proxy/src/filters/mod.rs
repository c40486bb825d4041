//! Filters of rules and backendRefs, compiled when a rule arrives: per request nothing is parsed or looked up by name.
//!
//! A filter that cannot be honoured never is skipped in silence: an edit that would break a message's framing is left out
//! and reported; a redirect or rewrite that cannot be used makes its requests fail (Gateway API asks for an error rather
//! than for a request without its filter).

pub mod cors;
pub mod edits;
pub mod redirect;
pub mod rewrite;
pub mod write;

use std::rc::Rc;

use smallvec::SmallVec;
use tidegate_model::{BackendKey, Filter};

use self::{cors::Cors, edits::Edits, redirect::Redirect, rewrite::Rewrite};
use crate::{
    balance::{BackendState, Prng},
    external_auth::ExternalAuth,
};

/// Filters of one rule or backendRef.
#[derive(Debug, Default)]
pub struct Filters {
    /// Edits of the request's fields.
    pub request: Edits,
    /// Edits of the response's fields.
    pub response: Edits,
    /// Answers instead of a backend.
    pub redirect: Option<Box<Redirect>>,
    /// Rewrites host and path.
    pub rewrite: Rewrite,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin rules.
    pub cors: Option<Box<Cors>>,
    /// Who is asked before a request goes on.
    pub external_auth: Option<Rc<ExternalAuth>>,
    /// Why requests must be answered with 500, when a filter cannot be used.
    pub broken: Option<Rc<str>>,
}

/// A mirror.
#[derive(Debug)]
pub struct Mirror {
    backend: Rc<BackendState>,
    numerator: u32,
    denominator: u32,
}

impl Filters {
    /// Compiles filters. What cannot be used is described in `problems`.
    pub fn compile(
        filters: &[Filter],
        find_backend: &mut dyn FnMut(&BackendKey) -> Rc<BackendState>,
        problems: &mut Vec<String>,
    ) -> Self {
        let mut compiled = Self::default();
        for filter in filters {
            let result = match filter {
                Filter::RequestHeaders(edits) => {
                    compiled.request.push_request_edits(edits, problems);
                    Ok(())
                }
                Filter::ResponseHeaders(edits) => {
                    compiled.response.push_edits(edits, problems);
                    Ok(())
                }
                Filter::Redirect(redirect) => {
                    Redirect::compile(redirect).map(|redirect| compiled.redirect = Some(Box::new(redirect)))
                }
                Filter::Rewrite(rewrite) => Rewrite::compile(rewrite).map(|rewrite| compiled.rewrite = rewrite),
                Filter::Mirror(mirror) => {
                    let (numerator, denominator) = (mirror.fraction.numerator, mirror.fraction.denominator);
                    compiled.mirrors.extend(mirror.backend.as_ref().map(|key| Mirror {
                        backend: find_backend(key),
                        numerator,
                        denominator,
                    }));
                    Ok(())
                }
                Filter::Cors(cors) => {
                    compiled.cors = Some(Box::new(Cors::compile(cors)));
                    Ok(())
                }
                Filter::ExternalAuth(auth) => {
                    compiled.external_auth = Some(Rc::new(ExternalAuth::compile(auth, find_backend)));
                    Ok(())
                }
            };
            if let Err(problem) = result {
                compiled.broken = Some(problem.as_str().into());
                problems.push(problem);
            }
        }
        compiled
    }

    /// Backends that get a copy of this request.
    pub fn choose_mirrors(&self, random: &mut Prng, chosen: &mut SmallVec<[Rc<BackendState>; 1]>) {
        for mirror in &self.mirrors {
            if mirror.numerator >= mirror.denominator || random.below(mirror.denominator) < mirror.numerator {
                chosen.push(mirror.backend.clone());
            }
        }
    }
}

/// Whether text may stand in a field value that the proxy writes: visible ASCII, spaces and tabs inside, bytes above 127
/// (RFC 9110 section 5.5). No line break can get through.
fn is_field_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)) && text.trim_matches([' ', '\t']) == text
}

/// Whether text may stand in a target or URI that the proxy writes: visible ASCII, nothing that ends a path.
fn is_path(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_requests_is_mirrored_and_each_mirror_decides_for_itself() {
        let mirror = |name: &str, numerator, denominator| {
            Filter::Mirror(tidegate_model::Mirror {
                backend: Some(BackendKey::Backend { name: tidegate_model::ObjectName::new("n", name) }),
                fraction: tidegate_model::Fraction { numerator, denominator },
            })
        };
        let filters = [mirror("all", 1, 1), mirror("fifth", 20, 100), mirror("half", 1, 2), mirror("none", 0, 100)];
        let compiled = Filters::compile(&filters, &mut |key| Rc::new(BackendState::new(key.clone())), &mut Vec::new());
        let mut random = Prng::from_seed(3);
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..10_000 {
            let mut chosen = SmallVec::new();
            compiled.choose_mirrors(&mut random, &mut chosen);
            chosen.iter().for_each(|backend| *counts.entry(backend.key.to_string()).or_default() += 1);
        }
        let of = |name: &str| counts.get(&format!("Backend/n/{name}")).copied().unwrap_or_default();
        assert_eq!((of("all"), of("none")), (10_000, 0));
        // Five standard deviations of a binomial distribution.
        assert!((1_800..=2_200).contains(&of("fifth")), "{counts:?}");
        assert!((4_750..=5_250).contains(&of("half")), "{counts:?}");
    }
}
