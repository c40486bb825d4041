//! Backends of a rule with their weights and filters.

use std::sync::Arc;

use tidegate_model::{BackendTarget, Match, WeightedBackend};

use super::filters::read_filters;
use crate::{
    generated::{common::BackendObjectReference, http_route::HttpBackendRef},
    references::Resolver,
    route::read_weight,
};

/// Reads the `backendRefs` of a rule. A reference that leads nowhere keeps its weight and answers 500; filters that cannot
/// be carried out make their backend one of those.
pub(super) fn read_backends(
    field: &str,
    references: &[HttpBackendRef],
    matches: &[Match],
    resolver: &mut Resolver<'_>,
) -> Result<Vec<WeightedBackend>, String> {
    let mut backends = Vec::with_capacity(references.len());
    for (index, reference) in references.iter().enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        let weight = read_weight(&field, reference.weight)?;
        let filters = reference.filters.as_deref().unwrap_or_default();
        let filters = read_filters(&format!("{field}.filters"), filters, matches, resolver)?;
        let object = BackendObjectReference {
            group: reference.group.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
            namespace: reference.namespace.clone(),
            port: reference.port,
        };
        let target = match resolver.resolve(&field, &object) {
            Ok(key) => BackendTarget::Backend(key),
            Err(problem) => BackendTarget::Invalid(Arc::from(problem.message.as_str())),
        };
        backends.push(WeightedBackend { target, weight, filters });
    }
    Ok(backends)
}
