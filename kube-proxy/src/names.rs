//! Names of chains and sets: short, stable, from a hash of what they stand for.

use sha2::{Digest, Sha256};

/// Sixteen characters of base 32 (RFC 4648's alphabet), as upstream's chain names have.
pub fn short_hash(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text);
    let (mut bits, mut held, mut out) = (0u32, 0u32, String::with_capacity(16));
    // Ten bytes are sixteen characters.
    for byte in digest.iter().take(10) {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
        }
        held &= (1 << bits) - 1;
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn hashes_are_base_32_of_sha_256() {
        // printf 'ns/web:http/tcp' | sha256sum | xxd -r -p | base32 | head -c 16
        assert_eq!(super::short_hash(""), "4OYMIQUY7QOBJGX3");
    }
}
