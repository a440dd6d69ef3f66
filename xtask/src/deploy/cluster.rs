//! The Kubernetes example.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::known::Known;
use super::{read, yaml};

pub const MANIFESTS: &str = "deploy/kubernetes/weatherlight.yaml";
/// Shorter secrets are refused by the preflight.
const SECRET_LEN_MIN: usize = 16;

pub fn faults(root: &Path, known: &Known) -> Result<Vec<String>> {
    let documents = yaml(&read(root, MANIFESTS)?).context(MANIFESTS)?;
    let faults = of_documents(&documents, known)?;
    Ok(faults.into_iter().map(|fault| format!("{MANIFESTS}: {fault}")).collect())
}

fn of_documents(documents: &[Value], known: &Known) -> Result<Vec<String>> {
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind);
    let mut faults = Vec::new();

    let configured = of_kind("ConfigMap").context("no ConfigMap")?["data"].as_object();
    let configured = configured.context("a ConfigMap without data")?;
    let set = of_kind("StatefulSet").context("no StatefulSet")?;
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let own = container["env"].as_array().into_iter().flatten();
    let own = own.filter_map(|variable| variable["name"].as_str());
    faults
        .extend(configured.keys().map(String::as_str).chain(own).filter_map(|n| known.variable(n)));

    let port = known.port()?;
    let address = format!("0.0.0.0:{port}");
    if configured.get("WEATHERLIGHT_HTTP_ADDR").and_then(Value::as_str) != Some(&address) {
        faults.push(format!("WEATHERLIGHT_HTTP_ADDR must be {address}"));
    }
    let ports = [
        ("the container's port", &container["ports"][0]["containerPort"]),
        (
            "the service's port",
            &of_kind("Service").context("no Service")?["spec"]["ports"][0]["port"],
        ),
    ];
    for (what, given) in ports {
        if given.as_u64() != Some(port.into()) {
            faults.push(format!("{what} is {given}, not {port}"));
        }
    }
    for (probe, path) in
        [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
    {
        if container[probe]["httpGet"]["path"] != path {
            faults.push(format!("{probe} must ask {path}"));
        }
    }
    let (grace, least) = (&pod["terminationGracePeriodSeconds"], known.stop_s()?);
    if grace.as_u64().is_none_or(|given| given <= least) {
        faults.push(format!(
            "terminationGracePeriodSeconds must be longer than the drain and closing the log, {least} s; it is {grace}"
        ));
    }
    // `NAME_SERVICE_HOST` of a service called like us would look like a mistyped setting.
    for (what, given, wanted) in [
        ("enableServiceLinks", &pod["enableServiceLinks"], false),
        ("automountServiceAccountToken", &pod["automountServiceAccountToken"], false),
        ("runAsNonRoot", &pod["securityContext"]["runAsNonRoot"], true),
        ("readOnlyRootFilesystem", &container["securityContext"]["readOnlyRootFilesystem"], true),
    ] {
        if *given != wanted {
            faults.push(format!("{what} must be {wanted}"));
        }
    }
    let secret = of_kind("Secret").context("no Secret")?["stringData"].as_object();
    for (key, value) in secret.context("a Secret without stringData")? {
        if value.as_str().is_none_or(|value| value.len() >= SECRET_LEN_MIN) {
            faults.push(format!("the placeholder of {key} would be taken for a secret"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::known::tests::known;

    const GOOD: &str = "
{kind: Secret, stringData: {a: replace-me}}
---
{kind: ConfigMap, data: {WEATHERLIGHT_HTTP_ADDR: '0.0.0.0:9100'}}
---
{kind: Service, spec: {ports: [{port: 9100}]}}
---
kind: StatefulSet
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 30
      enableServiceLinks: false
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true}
      containers:
        - ports: [{containerPort: 9100}]
          env: [{name: OONA_A, value: x}]
          securityContext: {readOnlyRootFilesystem: true}
          startupProbe: {httpGet: {path: /livez}}
          livenessProbe: {httpGet: {path: /livez}}
          readinessProbe: {httpGet: {path: /readyz}}
";

    #[test]
    fn a_careless_manifest_is_found() {
        let faults = |text: &str| of_documents(&yaml(text).unwrap(), &known()).unwrap();
        assert_eq!(faults(GOOD), Vec::<String>::new());
        for (from, to) in [
            ("Seconds: 30", "Seconds: 15"),
            ("OONA_A", "OONA_TYPO"),
            ("containerPort: 9100", "containerPort: 9101"),
            (
                "livenessProbe: {httpGet: {path: /livez}}",
                "livenessProbe: {httpGet: {path: /readyz}}",
            ),
            ("enableServiceLinks: false", "enableServiceLinks: true"),
            ("replace-me", "0123456789abcdef"),
        ] {
            assert_eq!(faults(&GOOD.replace(from, to)).len(), 1, "{to}");
        }
    }
}
