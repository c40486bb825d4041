//! Stage: what is said about objects that put nothing into a model of their own: they are read through others.

use super::Translator;
use crate::{
    endpoints::{judge_backend, judge_slice},
    object::Object,
    status::{Condition, ObjectStatus},
};

impl Translator {
    pub(super) fn settle_unserved(&mut self) {
        for reference in std::mem::take(&mut self.work.unserved) {
            let Some(object) = self.store.find(&reference).cloned() else {
                self.set_status(&reference, None);
                continue;
            };
            let status = match &object {
                Object::Backend(backend) => of_conditions(judge_backend(&reference.name, backend)),
                Object::EndpointSlice(slice) => of_conditions(judge_slice(slice)),
                _ => ObjectStatus::default(),
            };
            let is_said = status != ObjectStatus::default() || self.statuses.contains_key(&reference);
            self.set_status(&reference, is_said.then_some(status));
        }
    }
}

fn of_conditions(conditions: Vec<Condition>) -> ObjectStatus {
    ObjectStatus { conditions, ..ObjectStatus::default() }
}
