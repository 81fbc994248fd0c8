//! The authorities, certificates and keys of a Kubernetes cluster.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use loam_tests::cluster::{Order, Wanted};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Makes everything that the file `order` names.
pub(crate) fn run(order: &Path, dir: &Path) -> Result<()> {
    let order: Order = serde_json::from_slice(&fs::read(order)?).context("read the order")?;
    let mut authorities = HashMap::new();
    for name in &order.authorities {
        authorities.insert(name.as_str(), authority(name, dir)?);
    }
    for wanted in &order.certificates {
        let issuer = authorities.get(wanted.authority.as_str()).context("an authority that is not ordered")?;
        certificate(wanted, issuer, dir).with_context(|| format!("make the certificate {}", wanted.name))?;
    }
    for name in &order.keys {
        let key = KeyPair::generate()?;
        write(dir, &format!("{name}.key"), &key.serialize_pem())?;
        write(dir, &format!("{name}.pub"), &key.public_key_pem())?;
    }
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(dir.join(name), text).with_context(|| format!("write {name}"))
}

fn authority(name: &str, dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    write(dir, &format!("{name}.crt"), &params.self_signed(&key)?.pem())?;
    write(dir, &format!("{name}.key"), &key.serialize_pem())?;
    Ok(Issuer::new(params, key))
}

fn certificate(wanted: &Wanted, issuer: &Issuer<'static, KeyPair>, dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(wanted.names.clone())?;
    params.distinguished_name.push(DnType::CommonName, wanted.common_name.as_str());
    if let Some(organization) = &wanted.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match wanted.server {
        true => ExtendedKeyUsagePurpose::ServerAuth,
        false => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    write(dir, &format!("{}.crt", wanted.name), &params.signed_by(&key, issuer)?.pem())?;
    write(dir, &format!("{}.key", wanted.name), &key.serialize_pem())
}
