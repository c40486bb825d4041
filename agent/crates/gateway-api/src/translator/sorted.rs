//! Small sets that are made once and kept: thousands of routes have some of one or two members each, and a B-tree has room for
//! eleven from the first on.

use std::collections::BTreeSet;

/// A set that does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SortedSet<T>(Box<[T]>);

impl<T> Default for SortedSet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> From<BTreeSet<T>> for SortedSet<T> {
    fn from(members: BTreeSet<T>) -> Self {
        Self(members.into_iter().collect())
    }
}

impl<T: Ord> SortedSet<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, member: &T) -> bool {
        self.0.binary_search(member).is_ok()
    }

    /// Its members in their order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Members that another set has not, in their order.
    pub(crate) fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a T> {
        self.iter().filter(|member| !other.contains(member))
    }
}
