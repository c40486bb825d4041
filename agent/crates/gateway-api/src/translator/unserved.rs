//! Stage: what is said about objects that put nothing into a model: kinds that are not served yet, and kinds that are read
//! through others.

use std::collections::BTreeSet;

use super::{Translator, routes::parent_of};
use crate::{
    endpoints::{judge_backend, judge_slice},
    generated::common::ParentReference,
    object::{Object, ObjectRef},
    status::{Condition, Conditions, ObjectStatus, ParentStatus, Problem, condition},
};

impl Translator {
    pub(super) fn settle_unserved(&mut self) {
        for reference in std::mem::take(&mut self.work.unserved) {
            let Some(object) = self.store.find(&reference).cloned() else {
                self.edges.route_parents.replace(&reference, BTreeSet::new());
                self.set_status(&reference, None);
                continue;
            };
            let generation = object.metadata().generation;
            let status = match &object {
                Object::TLSRoute(route) => self.refuse_route(&reference, generation, route.spec.parent_refs.as_deref()),
                Object::TCPRoute(route) => self.refuse_route(&reference, generation, route.spec.parent_refs.as_deref()),
                Object::UDPRoute(route) => self.refuse_route(&reference, generation, route.spec.parent_refs.as_deref()),
                Object::BackendTLSPolicy(_) => {
                    let mut conditions = Conditions::new(generation);
                    conditions.judge(condition::ACCEPTED, "Accepted", Some(&not_served(&reference)));
                    of_conditions(conditions.into_list())
                }
                Object::Backend(backend) => of_conditions(judge_backend(&reference.name, backend)),
                Object::EndpointSlice(slice) => of_conditions(judge_slice(slice)),
                _ => ObjectStatus::default(),
            };
            let is_said = status != ObjectStatus::default() || self.statuses.contains_key(&reference);
            self.set_status(&reference, is_said.then_some(status));
        }
    }

    /// Says to each parent of this controller that a kind is not served yet.
    fn refuse_route(
        &mut self,
        reference: &ObjectRef,
        generation: Option<i64>,
        parents: Option<&[ParentReference]>,
    ) -> ObjectStatus {
        let parents = parents.unwrap_or_default();
        let named = parents.iter().filter_map(|parent| parent_of(parent, reference));
        self.edges.route_parents.replace(reference, named.collect());
        let parents = parents.iter().filter_map(|parent| {
            let view = self.find_view(&parent_of(parent, reference)?)?;
            let mut conditions = Conditions::new(generation);
            conditions.judge(condition::ACCEPTED, "Accepted", Some(&not_served(reference)));
            let controller = view.controller.clone();
            Some(ParentStatus { parent: parent.clone(), controller, conditions: conditions.into_list() })
        });
        ObjectStatus { parents: parents.collect(), ..ObjectStatus::default() }
    }
}

fn not_served(reference: &ObjectRef) -> Problem {
    Problem::new("UnsupportedValue", format!("{} is a kind that is not served yet", reference.kind))
}

fn of_conditions(conditions: Vec<Condition>) -> ObjectStatus {
    ObjectStatus { conditions, ..ObjectStatus::default() }
}
