use super::*;

const POD_A: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n";
const POD_B: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: shop}\n";

/// Files that change at one moment; `None` is a file that goes.
type Step<'a> = &'a [(&'a str, Option<&'a str>)];

/// Applies steps of `(file, content)` and returns what the last one did, in words.
fn play(steps: &[Step<'_>]) -> (Vec<String>, Vec<String>) {
    let mut tree = Tree::default();
    let mut latest: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut changes, mut problems) = (Vec::new(), Vec::new());
    for step in steps {
        let content = |text: &Option<&'static str>| text.map_or(Content::Gone, |t| Content::Bytes(t.as_bytes()));
        for (file, text) in *step {
            match text {
                Some(text) => drop(latest.insert(file, text)),
                None => drop(latest.remove(file)),
            }
        }
        let step: Vec<_> = step.iter().map(|(f, t)| ((*f).into(), content(&t.map(leak)))).collect();
        changes.clear();
        let mut outcome = tree.update(step);
        loop {
            changes.extend(outcome.changes.iter().map(words));
            if let Some(now) = outcome.problems {
                problems = now.iter().map(ToString::to_string).collect();
            }
            if outcome.again.is_empty() {
                break;
            }
            let again = outcome.again.iter().map(|f| (Arc::clone(f), Content::Bytes(latest[&**f].as_bytes())));
            outcome = tree.update(again.collect());
        }
    }
    (changes, problems)
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn words(change: &Change) -> String {
    match change {
        Change::Applied(object) => format!("+ {}", object.key()),
        Change::Deleted(key) => format!("- {key}"),
    }
}

#[track_caller]
fn check(steps: &[Step<'_>], changes: &[&str], problems: &[&str]) {
    let (did, wrong) = play(steps);
    assert_eq!(did, changes, "{wrong:#?}");
    assert_eq!(wrong.len(), problems.len(), "{wrong:#?}");
    for (wrong, expected) in wrong.iter().zip(problems) {
        assert!(wrong.contains(expected), "{wrong:?} does not say {expected:?}");
    }
}

#[test]
fn objects_come_in_the_order_in_which_they_refer_to_each_other() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\
                apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\n\
                addressType: IPv4\nendpoints: []\n---\n\
                apiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\n\
                apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x}\n---\n\
                apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let all = [
        "+ Namespace shop",
        "+ ServiceAccount default/x",
        "+ Service default/s",
        "+ EndpointSlice default/e",
        "+ Pod default/a",
    ];
    check(&[&[("m.yaml", Some(text))]], &all, &[]);
    let gone: Vec<_> = all.iter().rev().map(|t| t.replace('+', "-")).collect();
    let gone: Vec<_> = gone.iter().map(String::as_str).collect();
    check(&[&[("m.yaml", Some(text))], &[("m.yaml", None)]], &gone, &[]);
}

#[test]
fn only_what_differs_is_told() {
    let both = format!("{POD_A}---\n{POD_B}");
    let changed = format!("{POD_A}---\n{POD_B}spec: {{nodeName: n, containers: []}}\n");
    check(&[&[("m.yaml", Some(&both))], &[("m.yaml", Some(&both))]], &[], &[]);
    check(&[&[("m.yaml", Some(&both))], &[("m.yaml", Some(&changed))]], &["+ Pod shop/b"], &[]);
    check(&[&[("m.yaml", Some(&both))], &[("m.yaml", Some(POD_A))]], &["- Pod shop/b"], &[]);
}

#[test]
fn an_object_that_moves_to_another_file_does_not_blink() {
    check(&[&[("m.yaml", Some(POD_A))], &[("m.yaml", None), ("n.yaml", Some(POD_A))]], &[], &[]);
}

#[test]
fn a_broken_document_is_told_with_its_line_and_the_others_count() {
    let text = format!("# head\n{POD_A}---\nkind: Pod\nmetadata:\n  name: [oops\n---\n{POD_B}");
    check(&[&[("m.yaml", Some(&text))]], &["+ Pod shop/a", "+ Pod shop/b"], &["m.yaml:8: "]);
    let text = format!("{POD_A}spec:\n  containers: []\n  nodeName: [n]\n---\n{POD_B}");
    check(&[&[("m.yaml", Some(&text))]], &["+ Pod shop/b"], &["m.yaml:6: Pod shop/a: "]);
}

#[test]
fn a_broken_object_stays_as_it_was_last_good() {
    let good = format!("{POD_A}---\n{POD_B}");
    let bad = format!("{POD_A}spec: 7\n---\n{POD_B}");
    let gone = format!("{POD_A}spec: 7\n");
    let first: Step<'_> = &[("m.yaml", Some(&good))];
    check(&[first, &[("m.yaml", Some(&bad))]], &[], &["m.yaml:4: Pod shop/a: "]);
    // What is broken says who it is, so the other one is truly gone.
    check(&[first, &[("m.yaml", Some(&gone))]], &["- Pod shop/b"], &["Pod shop/a"]);
    check(&[first, &[("m.yaml", Some(&bad))], &[("m.yaml", Some(&good))]], &[], &[]);
    check(&[first, &[("m.yaml", Some(&bad))], &[("m.yaml", Some(POD_B))]], &["- Pod shop/a"], &[]);
    check(&[first, &[("m.yaml", Some(&bad))], &[("m.yaml", None)]], &["- Pod shop/b", "- Pod shop/a"], &[]);
}

#[test]
fn a_file_that_cannot_even_be_told_apart_removes_nothing() {
    let good = format!("{POD_A}---\n{POD_B}");
    let first: Step<'_> = &[("m.yaml", Some(&good))];
    for bad in ["\tx: {", "kind: Pod\nmetadata: {name: a", "just text", "[1, 2]", "kind: 7\nmetadata: []"] {
        check(&[first, &[("m.yaml", Some(bad))]], &[], &["m.yaml:"]);
        check(&[first, &[("m.yaml", Some(bad))], &[("m.yaml", Some(POD_A))]], &["- Pod shop/b"], &[]);
    }
    check(&[first, &[("m.yaml", Some(""))]], &["- Pod shop/b", "- Pod shop/a"], &[]);
}

#[test]
fn an_unreadable_file_removes_nothing() {
    let mut tree = Tree::default();
    tree.update(vec![("m.yaml".into(), Content::Bytes(POD_A.as_bytes()))]);
    let outcome = tree.update(vec![("m.yaml".into(), Content::Unreadable("no permission".to_owned()))]);
    assert!(outcome.changes.is_empty());
    assert_eq!(outcome.problems.unwrap()[0].to_string(), "m.yaml: no permission");
}

#[test]
fn of_two_files_the_first_by_name_counts_and_the_error_names_both() {
    let other = format!("{POD_A}spec: {{nodeName: n, containers: []}}\n");
    let both = "b.yaml:1: Pod shop/a: is ignored: a.yaml:1 describes the same object";
    let first: Step<'_> = &[("a.yaml", Some(POD_A)), ("b.yaml", Some(&other))];
    check(&[first], &["+ Pod shop/a"], &[both]);
    check(&[first, &[("b.yaml", None)]], &[], &[]);
    check(&[first, &[("a.yaml", None)]], &["+ Pod shop/a"], &[]);
    check(&[&first[1..], &first[..1]], &["+ Pod shop/a"], &[both]);
    check(&[first, &[("a.yaml", None), ("b.yaml", None)]], &["- Pod shop/a"], &[]);
    let twice = format!("{POD_A}---\n{other}");
    check(&[&[("a.yaml", Some(&twice))]], &["+ Pod shop/a"], &["a.yaml:5: Pod shop/a: is ignored: line 1 already"]);
}

#[test]
fn a_broken_winner_stays_the_winner() {
    let other = format!("{POD_A}spec: {{nodeName: n, containers: []}}\n");
    let bad = format!("{POD_A}spec: 7\n");
    let first: Step<'_> = &[("a.yaml", Some(POD_A)), ("b.yaml", Some(&other))];
    check(&[first, &[("a.yaml", Some(&bad))]], &[], &["a.yaml:4: Pod shop/a: ", "b.yaml:1: Pod shop/a: is ignored"]);
    check(&[first, &[("a.yaml", Some(&bad))], &[("a.yaml", None)]], &["+ Pod shop/a"], &[]);
    // It never was good, so there is nothing of it to keep.
    check(&[&[("a.yaml", Some(&bad)), ("b.yaml", Some(&other))]], &["+ Pod shop/a"], &["a.yaml:4: Pod shop/a: "]);
}

#[test]
fn unknown_kinds_are_told_once_each() {
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n---\n{POD_A}---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: e}}\n---\n\
         apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: s}}\n"
    );
    let problems = [
        "m.yaml:1: unknown kind Deployment (apps/v1): 2 objects ignored",
        "m.yaml:13: unknown kind Service (serving.knative.dev/v1): ignored",
    ];
    check(&[&[("m.yaml", Some(&text))]], &["+ Pod shop/a"], &problems);
}

#[test]
fn what_is_not_an_object_of_ours_is_told_why() {
    let cases = [
        ("kind: Pod\nmetadata: {name: a}\n", "m.yaml:1: Pod has no apiVersion"),
        ("apiVersion: v1\nmetadata: {name: a}\n", "m.yaml:1: has no kind"),
        ("apiVersion: v1\nkind: Pod\n", "m.yaml:1: Pod has no metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: A}\n", "name of Pod \"A\" has a character other than"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a/b}\n", "namespace \"a/b\" has a character"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\nb\"}\n", "has a character"),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n",
            "EndpointSlice is read as apiVersion discovery.k8s.io/v1, not discovery.k8s.io/v1beta1",
        ),
        ("apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: a}\n", "m.yaml:3: duplicate"),
        ("a:\n\tb: 1\n", "m.yaml:2: "),
    ];
    for (text, problem) in cases {
        check(&[&[("m.yaml", Some(text))]], &[], &[problem]);
    }
}

#[test]
fn a_list_is_the_objects_in_it() {
    let yaml = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n\
                - apiVersion: v1\n  kind: Pod\n  metadata: {name: b}\n  spec: 7\n\
                - apiVersion: apps/v1\n  kind: ReplicaSet\n  metadata: {name: r}\n";
    let problems = ["m.yaml:7: Pod default/b: ", "m.yaml:11: unknown kind ReplicaSet"];
    check(&[&[("m.yaml", Some(yaml))]], &["+ Pod default/a"], &problems);
    let json =
        r#"{"apiVersion":"v1","kind":"PodList","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}]}"#;
    check(&[&[("m.json", Some(json))]], &["+ Pod default/a"], &[]);
}

#[test]
fn json_files_are_read_like_yaml() {
    let json = "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"}}\n\
                {\"apiVersion\":\"v1\",\"kind\":\"Pod\",\n\"metadata\":{\"name\":\"b\"},\n\"spec\":7}\n{";
    check(&[&[("m.json", Some(json))]], &["+ Pod default/a"], &["m.json:4: Pod default/b: ", "m.json:5: EOF"]);
}

#[test]
fn hostile_files_are_refused_and_cost_little() {
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n\
                c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n\
                e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n";
    let deep = format!("a: {}1{}\n", "[".repeat(5_000), "]".repeat(5_000));
    let deep_json = format!("{{\"a\": {}", "[".repeat(100_000));
    let big = " ".repeat(11 << 20);
    let cases = [
        ("m.yaml", bomb, "m.yaml:"),
        ("m.yaml", &deep, "m.yaml:1"),
        ("m.json", &deep_json, "m.json:1: "),
        ("m.yaml", &big, "m.yaml: is larger than 10 MiB"),
    ];
    for (file, text, problem) in cases {
        let started = std::time::Instant::now();
        check(&[&[(file, Some(text))]], &[], &[problem]);
        assert!(started.elapsed().as_secs() < 5, "{problem}");
    }
    let mut tree = Tree::default();
    let outcome = tree.update(vec![("m.yaml".into(), Content::Bytes(b"a: 1\nb: \xff\n"))]);
    assert_eq!(outcome.problems.unwrap()[0].to_string(), "m.yaml:2: is not UTF-8 text");
}

#[test]
fn odd_but_honest_files_are_read() {
    let crlf = POD_A.replace('\n', "\r\n");
    let bom = format!("\u{feff}{POD_A}");
    let anchors = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: &n shop\n  labels: {n: *n, v: 1}\n";
    let octal = format!(
        "{POD_A}spec:\n  hostNetwork: no\n  containers: []\n  volumes:\n  - name: v\n    \
                         configMap: {{name: c, defaultMode: 0644}}\n"
    );
    for text in [&crlf, &bom, anchors, &octal] {
        check(&[&[("m.yaml", Some(text))]], &["+ Pod shop/a"], &[]);
    }
}

#[test]
fn of_a_large_file_only_what_changed_is_read() {
    let pod = |i: u32, node: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}}}\nspec: {{nodeName: {node}, containers: []}}\n"
        )
    };
    let text: String = (0..20).map(|i| pod(i, "n")).collect();
    let changed = text.replacen(&pod(7, "n"), &pod(7, "m"), 1);
    let mut tree = Tree::default();
    tree.update(vec![("m.yaml".into(), Content::Bytes(text.as_bytes()))]);
    let known = tree.known(&"m.yaml".into(), &tree.claims.iter().map(|(k, c)| (k.clone(), c[0].clone())).collect());
    let read = parse::read(Format::Yaml, changed.as_bytes(), &known).found;
    let objects: Vec<_> = read.iter().filter_map(|f| f.object.as_ref()).map(|o| o.key().to_string()).collect();
    assert_eq!((read.len(), objects), (20, vec!["Pod default/p7".to_owned()]));
    let outcome = tree.update(vec![("m.yaml".into(), Content::Bytes(changed.as_bytes()))]);
    assert_eq!(outcome.changes.iter().map(words).collect::<Vec<_>>(), ["+ Pod default/p7"]);
    assert!(outcome.again.is_empty());
}
