//! Makes the parts of a waypoint.

use std::collections::BTreeMap;

use serde_json::Value;

use super::api::{Api, Trouble};
use crate::provision::{Part, Template, is_part_of, optional_collections, parts};
use crate::resource::gateway::Gateway;
use crate::resource::{Name, quoted};
use crate::status::Reason;
use crate::status::gateway::{NotMade, Waypoint};

/// Applies the parts of a waypoint. What people have to change is a reason, and not an error. A Gateway that asks for
/// addresses has a waypoint of its own.
pub(super) async fn make(
    api: &Api,
    template: &Template,
    name: &Name,
    waypoint: &Waypoint,
) -> Result<Result<(), NotMade>, Trouble> {
    match attempt(api, template, name, &waypoint.gateway).await {
        Err(Trouble::Failed(message)) => Ok(Err(NotMade { reason: Reason::NoResources, message })),
        other => other,
    }
}

async fn attempt(
    api: &Api,
    template: &Template,
    name: &Name,
    gateway: &Gateway,
) -> Result<Result<(), NotMade>, Trouble> {
    if !gateway.addresses.is_empty() || !gateway.listeners.iter().any(|listener| listener.is_hbone()) {
        return Ok(Ok(()));
    }
    let overlays = match overlays(api, name, gateway).await? {
        Ok(overlays) => overlays,
        Err(message) => return Ok(Err(NotMade { reason: Reason::InvalidParameters, message })),
    };
    let parts = match parts(name, gateway, template, &overlays) {
        Ok(parts) => parts,
        Err(error) => {
            let message = format!("ConfigMap {}: {error}", parameters_name(gateway));
            return Ok(Err(NotMade { reason: Reason::InvalidParameters, message }));
        }
    };
    for part in &parts {
        let path = format!("{}/{}", part.collection, name.name);
        if let Some(found) = api.get(&path).await?
            && !is_part_of(&found, gateway)
        {
            let kind = part.object.get("kind").and_then(Value::as_str).unwrap_or_default();
            let message = format!(
                "{kind} {name} exists and is somebody else's: give the Gateway another name, or delete the {kind}"
            );
            return Ok(Err(NotMade { reason: Reason::Invalid, message }));
        }
    }
    for part in &parts {
        let path = format!("{}/{}", part.collection, name.name);
        api.apply(&path, &part.object).await?;
    }
    remove_others(api, name, gateway, &parts).await?;
    Ok(Ok(()))
}

/// Takes away parts that nobody asks for any more.
async fn remove_others(api: &Api, name: &Name, gateway: &Gateway, parts: &[Part]) -> Result<(), Trouble> {
    for collection in optional_collections(&name.namespace) {
        if parts.iter().any(|part| part.collection == collection) {
            continue;
        }
        let path = format!("{collection}/{}", name.name);
        if let Some(found) = api.get(&path).await?
            && is_part_of(&found, gateway)
        {
            api.delete(&path).await?;
        }
    }
    Ok(())
}

fn parameters_name(gateway: &Gateway) -> String {
    gateway.infrastructure.parameters.as_ref().map(|parameters| quoted(&parameters.name)).unwrap_or_default()
}

/// What the ConfigMap says that the Gateway names; an error is for people.
async fn overlays(
    api: &Api,
    name: &Name,
    gateway: &Gateway,
) -> Result<Result<BTreeMap<String, String>, String>, Trouble> {
    let Some(parameters) = &gateway.infrastructure.parameters else { return Ok(Ok(BTreeMap::new())) };
    if (parameters.group.as_str(), parameters.kind.as_str()) != ("", "ConfigMap") {
        return Ok(Err(format!("infrastructure.parametersRef is a {}, and not a ConfigMap", quoted(&parameters.kind))));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if parameters.name.is_empty() || !parameters.name.chars().all(plain) {
        return Ok(Err(format!("{} is no name of a ConfigMap", quoted(&parameters.name))));
    }
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", name.namespace, parameters.name);
    let Some(map) = api.get(&path).await? else {
        return Ok(Err(format!("ConfigMap {}/{} does not exist", name.namespace, parameters.name)));
    };
    let data = map.get("data").and_then(Value::as_object).into_iter().flatten();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Ok(Ok(data.filter_map(text).collect()))
}
