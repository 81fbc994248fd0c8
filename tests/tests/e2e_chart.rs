//! The chart as Helm and the API server read it.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use loam_tests::cluster::{CHART, Helm};
use loam_tests::release::Release;
use loam_tests::testing::on_cluster;
use serde_json::{Value, json};

/// The presets beside the values that hold without any.
fn presets() -> Result<Vec<String>> {
    let names = fs::read_dir(CHART)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found: Vec<_> = names.filter(|name| name.starts_with("values-") && name.ends_with(".yaml")).collect();
    ensure!(found.len() > 1, "the presets are gone");
    Ok(found)
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// Fields of `object` that its type does not have.
fn strange<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Vec<String>> {
    let typed: T = serde_json::from_value(object.clone())?;
    let mut found = Vec::new();
    compare(object, &serde_json::to_value(typed)?, "", &mut found);
    Ok(found)
}

fn compare(written: &Value, known: &Value, path: &str, found: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (key, value) in written {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(known) => compare(value, known, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (index, (value, known)) in written.iter().zip(known).enumerate() {
                compare(value, known, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

fn strange_fields(object: &Value) -> Result<Vec<String>> {
    match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => strange::<ClusterRole>(object),
        "ClusterRoleBinding" => strange::<ClusterRoleBinding>(object),
        "CustomResourceDefinition" => strange::<CustomResourceDefinition>(object),
        "DaemonSet" => strange::<DaemonSet>(object),
        "Deployment" => strange::<Deployment>(object),
        "Job" => strange::<Job>(object),
        "NetworkPolicy" => strange::<NetworkPolicy>(object),
        "PodDisruptionBudget" => strange::<PodDisruptionBudget>(object),
        "ResourceQuota" => strange::<ResourceQuota>(object),
        "Role" => strange::<Role>(object),
        "RoleBinding" => strange::<RoleBinding>(object),
        "Service" => strange::<Service>(object),
        "ServiceAccount" => strange::<ServiceAccount>(object),
        other => bail!("is of kind {other:?}, for which this test has no type"),
    }
}

#[test]
#[ignore = "needs Helm: cargo xtask test --ring e2e"]
fn every_preset_is_free_of_faults_and_of_fields_that_kubernetes_does_not_know() {
    on_cluster(|_| {
        for preset in std::iter::once(None).chain(presets()?.into_iter().map(Some)) {
            let files: Vec<&str> = preset.as_deref().into_iter().collect();
            let path = preset.as_ref().map(|name| format!("{CHART}/{name}"));
            let values: Vec<&str> = path.iter().flat_map(|path| ["--values", path.as_str()]).collect();
            Helm.run(&[&["lint", CHART, "--strict", "--quiet"], &values[..]].concat())?;
            let objects = documents(&Helm.render(&files, &[])?)?;
            ensure!(objects.len() > 15, "{preset:?} renders only {} objects", objects.len());
            for object in objects {
                let name = format!("{preset:?}: {} {}", object["kind"], object["metadata"]["name"]);
                let strange = strange_fields(&object).context(name.clone())?;
                ensure!(strange.is_empty(), "{name} has fields that Kubernetes does not know: {strange:?}");
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs Helm: cargo xtask test --ring e2e"]
fn a_value_of_the_wrong_type_and_a_name_that_no_value_has_are_refused_by_their_path() {
    on_cluster(|_| {
        for (setting, named) in [
            ("controller.replicas=many", "/controller/replicas"),
            ("node.cni.binDir=relative", "/node/cni/binDir"),
            ("mesh.outboundTrafficPolicy=SOME", "/mesh/outboundTrafficPolicy"),
            ("controler.replicas=2", "controler"),
            ("node.ztunel.workerThreads=2", "ztunel"),
        ] {
            let error = match Helm.render(&[], &[setting]) {
                Ok(_) => bail!("{setting} is taken"),
                Err(error) => error.to_string(),
            };
            ensure!(error.contains(named), "{setting} is refused without {named}: {error}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn nothing_is_installed_beside_the_control_plane_of_another_mesh() {
    on_cluster(|kubectl| {
        let namespace = "another-mesh";
        let labels = json!({"app": "istiod"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let foreign = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "istiod-canary", "namespace": namespace, "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
        });
        kubectl
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string())?;
        kubectl.apply(&foreign.to_string())?;
        let install = ["install", "second", CHART, "--namespace", namespace, "--dry-run=server"];
        let refused = Helm.run(&install);
        kubectl.run(&["delete", "namespace", namespace, "--wait=false"])?;
        let error = refused.err().context("it would be installed")?.to_string();
        ensure!(error.contains("istiod-canary in namespace another-mesh"), "{error}");
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: cargo xtask test --ring e2e"]
fn a_policy_with_a_word_that_is_none_is_refused_and_fields_that_nobody_knows_are_kept() {
    on_cluster(|kubectl| {
        Release::install(kubectl)?;
        let policy = |spec: Value| {
            let metadata = json!({"name": "tried", "namespace": "default"});
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
        };
        for spec in [json!({"action": "MAYBE"}), json!({"rules": [{"from": [{"source": {"namespaces": "web"}}]}]})] {
            ensure!(kubectl.apply(&policy(spec.clone()).to_string()).is_err(), "{spec} is taken");
        }
        let spec =
            json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["web"], "moons": ["1"]}}]}]});
        kubectl.apply(&policy(spec.clone()).to_string())?;
        let get = |version: &str| -> Result<Value> {
            let kind = format!("authorizationpolicies.{version}.security.istio.io");
            let get = ["get", &kind, "tried", "--namespace", "default", "--output=json"];
            Ok(serde_json::from_str::<Value>(&kubectl.run(&get)?)?["spec"].take())
        };
        let kept = (get("v1")?, get("v1beta1")?);
        kubectl.run(&["delete", "authorizationpolicy", "tried", "--namespace", "default"])?;
        ensure!(kept == (spec.clone(), spec), "{kept:?}");
        Ok(())
    });
}
