//! Stage: TrafficDomains, their pools and models.

use std::sync::Arc;

use tidegate_model::{DomainName, ObjectName};

use super::Translator;
use crate::{
    domain::{AddressSource, judge_domains, read_domain},
    object::{Kind, ObjectRef},
    status::ObjectStatus,
};

impl Translator {
    pub(super) fn settle_domains(&mut self) {
        let work = std::mem::take(&mut self.work.domains);
        if work.is_empty() {
            return;
        }
        for name in &work {
            let reference = reference(name);
            let Some(object) = self.store.find_domain(&reference.name) else {
                self.drafts.remove(name);
                self.edges.domain_config_maps.replace(name, Default::default());
                continue;
            };
            self.translated += 1;
            let draft = read_domain(name, object, &self.settings, &|config_map| self.store.find_config_map(config_map));
            self.edges.domain_config_maps.replace(name, draft.config_maps.clone());
            self.drafts.insert(name.clone(), Arc::new(draft));
        }
        // Domains are few; an overlap may concern any other.
        let after = judge_domains(&self.drafts);
        let before = std::mem::take(&mut self.domains);
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.drop_domain(name);
            self.set_status(&reference(name), None);
        }
        for (name, state) in &after {
            let known = before.get(name);
            if known == Some(state) {
                continue;
            }
            self.set_status(
                &reference(name),
                Some(ObjectStatus { conditions: state.conditions(), ..ObjectStatus::default() }),
            );
            let was_here = self.models.is_here(name);
            match state.addresses() {
                Some(source) if state.draft.is_here => {
                    self.models.put_domain(&state.draft.domain);
                    self.put_pool(name, source);
                }
                Some(source) => {
                    self.models.remove_domain(name);
                    self.put_pool(name, source);
                }
                None => self.drop_domain(name),
            }
            let is_same_place = known.is_some_and(|known| known.addresses() == state.addresses());
            if !is_same_place || was_here != self.models.is_here(name) {
                self.work.classes.extend(self.edges.class_domains.sources_of(name).cloned());
                self.mark_gateways_of(name);
            }
        }
        self.domains = after;
    }

    fn put_pool(&mut self, name: &DomainName, source: &AddressSource) {
        match source {
            AddressSource::Pool(prefixes) => {
                self.pools.entry(name.clone()).or_default().set_prefixes(prefixes);
            }
            AddressSource::Node(_) => {
                self.pools.remove(name);
            }
        }
    }

    fn drop_domain(&mut self, name: &DomainName) {
        self.models.remove_domain(name);
        self.pools.remove(name);
        self.work.classes.extend(self.edges.class_domains.sources_of(name).cloned());
        self.mark_gateways_of(name);
    }

    fn mark_gateways_of(&mut self, name: &DomainName) {
        for class in self.edges.class_domains.sources_of(name) {
            self.work.gateways.extend(self.edges.gateway_classes.sources_of(class).cloned());
        }
    }
}

fn reference(name: &DomainName) -> ObjectRef {
    ObjectRef::new(Kind::TrafficDomain, ObjectName::new("", name.as_str()))
}
