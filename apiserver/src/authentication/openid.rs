//! What the API server tells others about the keys of its tokens
//! (upstream: `serviceaccount/openidmetadata.go`).

use component::keys::VerifyingKey;
use serde_json::{Value, json};

/// The JSON Web Key Set at `/openid/v1/jwks` (`application/jwk-set+json`).
pub fn key_set(keys: &[VerifyingKey]) -> Value {
    json!({"keys": keys.iter().map(|k| &k.jwk).collect::<Vec<_>>()})
}

/// The discovery document at `/.well-known/openid-configuration` (`application/json`).
///
/// # Errors
/// Upstream's text, when the issuer cannot be an OpenID issuer; the two paths are then not served.
pub fn discovery(issuer: &str, key_set_uri: &str, keys: &[VerifyingKey]) -> Result<Value, String> {
    if issuer.is_empty() {
        return Err("empty issuer URL".to_owned());
    }
    if !issuer.starts_with("https://") {
        return Err(format!("issuer URL must use https scheme, got: {issuer}"));
    }
    if issuer.contains('#') {
        return Err(format!("issuer URL may not include a fragment, got: {issuer}"));
    }
    if issuer.contains('?') {
        return Err(format!("issuer URL may not include a query, got: {issuer}"));
    }
    if !key_set_uri.starts_with("https://") {
        return Err(format!("jwksURI requires https scheme, parsed as: {key_set_uri}"));
    }
    let mut algorithms: Vec<String> = keys.iter().map(|k| format!("{:?}", k.algorithm)).collect();
    algorithms.sort();
    algorithms.dedup();
    Ok(json!({
        "issuer": issuer,
        "jwks_uri": key_set_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::signing_key;
    use super::*;

    #[test]
    fn documents() {
        let key = signing_key();
        let keys = [key.verifying().clone()];
        let set = key_set(&keys);
        assert_eq!(set["keys"][0]["crv"], "P-256");
        assert_eq!(set["keys"][0]["kid"], keys[0].id.as_str());
        let document =
            discovery("https://i", "https://h/openid/v1/jwks", &keys).expect("a document");
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256"]));
        for bad in ["", "http://i", "https://i?x", "https://i#x"] {
            assert!(discovery(bad, "https://h", &keys).is_err(), "{bad}");
        }
    }
}
