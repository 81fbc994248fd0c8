//! From the labels of a pod to the services that select it, without asking every service.

use std::collections::HashMap;
use std::sync::Arc;

use crate::resource::{Labels, Name};

type Pair = (Box<str>, Box<str>);

/// The services of each namespace, each filed under one label of its selector.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    namespaces: HashMap<Arc<str>, HashMap<Pair, Vec<Name>>>,
}

impl Selectors {
    /// Files a service; one without a selector is not filed. The same selector must be given to [`Self::remove`].
    pub(super) fn add(&mut self, service: &Name, selector: &Labels) {
        let namespace = self.namespaces.entry(Arc::clone(&service.namespace)).or_default();
        // The label that fewest services share tells most about a pod.
        let filed = |(k, v): &(&str, &str)| namespace.get(&(Box::from(*k), Box::from(*v))).map_or(0, Vec::len);
        if let Some((k, v)) = selector.iter().min_by_key(filed) {
            namespace.entry((k.into(), v.into())).or_default().push(service.clone());
        }
    }

    /// Takes a service out.
    pub(super) fn remove(&mut self, service: &Name, selector: &Labels) {
        let Some(namespace) = self.namespaces.get_mut(&service.namespace) else { return };
        for (k, v) in selector.iter() {
            let pair = (k.into(), v.into());
            let Some(services) = namespace.get_mut(&pair) else { continue };
            services.retain(|s| s != service);
            if services.is_empty() {
                namespace.remove(&pair);
            }
        }
        if namespace.is_empty() {
            self.namespaces.remove(&service.namespace);
        }
    }

    /// Services that may select something with `labels`, in no order; the selector itself has to be asked.
    pub(super) fn candidates<'a>(&'a self, namespace: &str, labels: &'a Labels) -> impl Iterator<Item = &'a Name> {
        let filed = self.namespaces.get(namespace);
        labels.iter().filter_map(move |(k, v)| filed?.get(&(Box::from(k), Box::from(v)))).flatten()
    }
}
