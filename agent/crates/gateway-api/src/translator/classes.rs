//! Stage: GatewayClasses, which lead from Gateways to domains.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::DomainName;

use super::Translator;
use crate::{
    generated::gateway_class::GatewayClass,
    object::{Kind, OWN_GROUP, ObjectRef},
    status::{Conditions, ObjectStatus, Problem, condition},
};

/// A GatewayClass of this controller.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClassState {
    pub(super) controller: Arc<str>,
    /// Domain that serves the class's Gateways, or why none does.
    pub(super) domain: Result<DomainName, Problem>,
}

impl Translator {
    pub(super) fn settle_classes(&mut self) {
        for name in std::mem::take(&mut self.work.classes) {
            let reference = ObjectRef::new(Kind::GatewayClass, name.clone());
            let class = self.store.find_class(&name).cloned();
            let own = class.filter(|class| self.settings.controller_names.contains(&class.spec.controller_name));
            let state = own.as_ref().map(|class| {
                self.translated += 1;
                ClassState {
                    controller: Arc::from(class.spec.controller_name.as_str()),
                    domain: self.find_domain_of(class),
                }
            });
            let named = own.as_ref().and_then(|class| named_domain(class).ok());
            self.edges.class_domains.replace(&name, named.into_iter().collect::<BTreeSet<_>>());
            let status = own.as_ref().zip(state.as_ref()).map(|(class, state)| {
                let mut conditions = Conditions::new(class.metadata.generation);
                conditions.judge(condition::ACCEPTED, "Accepted", state.domain.as_ref().err()).judge(
                    condition::SUPPORTED_VERSION,
                    "SupportedVersion",
                    self.unknown_release().as_ref(),
                );
                ObjectStatus { conditions: conditions.into_list(), ..ObjectStatus::default() }
            });
            self.set_status(&reference, status);
            if self.classes.get(&name) != state.as_ref() {
                self.work.gateways.extend(self.edges.gateway_classes.sources_of(&name).cloned());
                match state {
                    Some(state) => self.classes.insert(name, state),
                    None => self.classes.remove(&name),
                };
            }
        }
    }

    /// What is wrong with the release of the installed definitions. They are used all the same, as far as they are known.
    fn unknown_release(&self) -> Option<Problem> {
        let release = self.settings.unknown_release.as_ref()?;
        Some(Problem::new(
            "UnsupportedVersion",
            format!("the Gateway API CRDs are of {release}, and v1.6 and v1.7 are known: install one of these"),
        ))
    }

    fn find_domain_of(&self, class: &GatewayClass) -> Result<DomainName, Problem> {
        let name = named_domain(class)?;
        let invalid = |message: String| Problem::new("InvalidParameters", format!("spec.parametersRef: {message}"));
        match self.domains.get(&name) {
            None => Err(invalid(format!("TrafficDomain/{name} does not exist: create it or change the reference"))),
            Some(state) => match &state.refusal {
                Some(problem) => Err(invalid(format!("TrafficDomain/{name} is not accepted: {}", problem.message))),
                None => Ok(name),
            },
        }
    }
}

/// The domain that a class names, whether it exists or not.
fn named_domain(class: &GatewayClass) -> Result<DomainName, Problem> {
    match &class.spec.parameters_ref {
        Some(reference) if reference.group == OWN_GROUP && reference.kind == "TrafficDomain" => {
            Ok(DomainName::new(&reference.name))
        }
        Some(reference) => Err(Problem::new(
            "InvalidParameters",
            format!(
                "spec.parametersRef: {} of group {} is not read: name a TrafficDomain of group {OWN_GROUP}",
                reference.kind, reference.group
            ),
        )),
        None => Err(Problem::new(
            "InvalidParameters",
            format!("spec.parametersRef is missing: name a TrafficDomain of group {OWN_GROUP}"),
        )),
    }
}
