//! ReferenceGrants: who may refer to objects of another namespace.
//!
//! A grant lives in the namespace that is referred to. A reference within a namespace needs none.

use std::sync::Arc;

use crate::generated::reference_grant::ReferenceGrant;

/// A reference from one namespace to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossReference<'a> {
    pub(crate) from_group: &'a str,
    pub(crate) from_kind: &'a str,
    pub(crate) from_namespace: &'a str,
    pub(crate) to_group: &'a str,
    pub(crate) to_kind: &'a str,
    pub(crate) to_name: &'a str,
}

/// Whether one of the grants of the namespace referred to permits a reference.
pub(crate) fn is_permitted<'a>(
    mut grants: impl Iterator<Item = &'a Arc<ReferenceGrant>>,
    reference: CrossReference<'_>,
) -> bool {
    grants.any(|grant| {
        grant.spec.from.iter().any(|from| {
            from.group == reference.from_group
                && from.kind == reference.from_kind
                && from.namespace == reference.from_namespace
        }) && grant.spec.to.iter().any(|to| {
            to.group == reference.to_group
                && to.kind == reference.to_kind
                && to.name.as_deref().is_none_or(|name| name.is_empty() || name == reference.to_name)
        })
    })
}
