use super::*;

fn gateway(spec: &str) -> Gateway {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: w, namespace: shop, uid: u-1}}\nspec: {spec}\n"
    );
    let mut state = loam_manifest::read([("m.yaml", yaml.as_bytes())]);
    let Some(loam_manifest::Object::Gateway(object)) = state.objects.pop() else { panic!("{:?}", state.problems) };
    crate::resource::gateway::gateway(object.metadata, object.spec, &mut Vec::new())
}

const PLAIN: &str = "{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}], \
                     infrastructure: {labels: {team: red}, annotations: {note: a}}}";

fn template() -> Template {
    Template {
        image: "registry/loam-waypoint:1".into(),
        pull_policy: "IfNotPresent".into(),
        pull_secrets: vec!["key".into()],
        control_plane: "istiod.istio-system.svc:15012".into(),
        env: vec![("TRUST_DOMAIN".into(), "cluster.local".into())],
    }
}

fn made(overlays: &[(&str, &str)]) -> Result<Vec<Part>, OverlayError> {
    let overlays = overlays.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    parts(&Name::new("shop", "w"), &gateway(PLAIN), &template(), &overlays)
}

fn part<'a>(parts: &'a [Part], kind: &str) -> &'a Value {
    parts.iter().map(|part| &part.object).find(|object| object["kind"] == kind).expect("the part is there")
}

#[test]
fn a_waypoint_is_an_account_a_deployment_and_a_service_that_end_with_its_gateway() {
    let parts = made(&[]).unwrap();
    let places: Vec<&str> = parts.iter().map(|part| &*part.collection).collect();
    let expected = [
        "/api/v1/namespaces/shop/serviceaccounts",
        "/apis/apps/v1/namespaces/shop/deployments",
        "/api/v1/namespaces/shop/services",
    ];
    assert_eq!(places, expected);
    for Part { object, .. } in &parts {
        let metadata = &object["metadata"];
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");
        assert_eq!((&metadata["labels"]["team"], &metadata["annotations"]["note"]), (&json!("red"), &json!("a")));
        assert_eq!(metadata["labels"]["gateway.networking.k8s.io/gateway-class-name"], "istio-waypoint");
    }
    let pod = &part(&parts, "Deployment")["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(pod["metadata"]["labels"]["networking.istio.io/tunnel"], "http");
    assert_eq!(pod["spec"]["containers"][0]["image"], "registry/loam-waypoint:1");
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "key"}]));
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "TRUST_DOMAIN", "value": "cluster.local"})), "{env:?}");
    assert_eq!(part(&parts, "Service")["spec"]["selector"], json!({"gateway.networking.k8s.io/gateway-name": "w"}));
}

#[test]
fn overlays_change_parts_and_ask_for_more() {
    let deployment = "spec:\n  replicas: 3\n  template:\n    spec:\n      containers:\n      - name: istio-proxy\n        \
                      resources: {limits: {memory: 1Gi}}\n        env: [{name: LOG_FORMAT, value: json}]\n";
    let parts = made(&[("deployment", deployment), ("horizontalPodAutoscaler", "spec: {maxReplicas: 9}")]).unwrap();
    let spec = &part(&parts, "Deployment")["spec"];
    let container = &spec["template"]["spec"]["containers"];
    assert_eq!((&spec["replicas"], container.as_array().unwrap().len()), (&json!(3), 1));
    assert_eq!(
        container[0]["resources"],
        json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}})
    );
    let env = container[0]["env"].as_array().unwrap();
    assert_eq!((env.len(), env.last().unwrap()), (12, &json!({"name": "LOG_FORMAT", "value": "json"})));
    assert_eq!(part(&parts, "HorizontalPodAutoscaler")["spec"]["maxReplicas"], 9);
    part(&parts, "PodDisruptionBudget");
    let replicas =
        |overlays: &[(&str, &str)]| part(&made(overlays).unwrap(), "Deployment")["spec"].get("replicas").cloned();
    assert_eq!(
        replicas(&[("horizontalPodAutoscaler", "spec: {maxReplicas: 9}")]),
        None,
        "the autoscaler says how many"
    );
    assert_eq!(replicas(&[]), Some(json!(1)));
}

#[test]
fn an_overlay_that_is_wrong_is_refused_by_its_key() {
    for (key, text, why) in [
        ("daemonSet", "spec: {}", "is none of"),
        ("deployment", "spec: [", "deployment"),
        ("deployment", "- a", "no map"),
        ("service", "metadata: {name: other}", "cannot be changed"),
        ("deployment", "spec: {selector: {matchLabels: {a: b}}}", "cannot be changed"),
    ] {
        let error = made(&[(key, text)]).unwrap_err().to_string();
        assert!(error.contains(why), "{key}: {error}");
    }
}

#[test]
fn a_service_of_somebody_else_is_not_taken_for_a_part() {
    let gateway = gateway(PLAIN);
    assert!(!is_part_of(&json!({"metadata": {"name": "w", "labels": {"app": "w"}}}), &gateway));
    assert!(is_part_of(&json!({"metadata": {"ownerReferences": [{"uid": "u-1"}]}}), &gateway));
    assert!(is_part_of(&json!({"metadata": {"labels": {MANAGED.0: MANAGED.1}}}), &gateway));
}
