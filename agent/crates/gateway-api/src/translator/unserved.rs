//! Stage: what is said about objects that put nothing into a model: kinds that are not served yet, and kinds that are read
//! through others.

use super::Translator;
use crate::{
    endpoints::{judge_backend, judge_slice},
    object::{Object, ObjectRef},
    status::{Condition, Conditions, ObjectStatus, Problem, condition},
};

impl Translator {
    pub(super) fn settle_unserved(&mut self) {
        for reference in std::mem::take(&mut self.work.unserved) {
            let Some(object) = self.store.find(&reference).cloned() else {
                self.set_status(&reference, None);
                continue;
            };
            let generation = object.metadata().generation;
            let status = match &object {
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
}

fn not_served(reference: &ObjectRef) -> Problem {
    Problem::new("UnsupportedValue", format!("{} is a kind that is not served yet", reference.kind))
}

fn of_conditions(conditions: Vec<Condition>) -> ObjectStatus {
    ObjectStatus { conditions, ..ObjectStatus::default() }
}
