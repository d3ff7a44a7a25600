//! Secrets: given as a value, or as a file that holds one.

use std::fs;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::reader::Reader;

/// A secret and, if it came from a file, where to read it again.
#[derive(Clone, Debug)]
pub struct Secret {
    /// As it was when the configuration was read.
    pub value: SecretString,
    /// The file it came from.
    pub file: Option<PathBuf>,
}

/// The portal's token.
pub(super) fn token(reader: &mut Reader<'_>, required: bool) -> Secret {
    for_header(reader, "portal.token", "portal.token_file", required)
}

/// What operators show at the admin port.
pub(super) fn admin_token(reader: &mut Reader<'_>, required: bool) -> Secret {
    for_header(reader, "admin.token", "admin.token_file", required)
}

/// A secret that becomes an HTTP header.
fn for_header(reader: &mut Reader<'_>, key: &str, file_key: &str, required: bool) -> Secret {
    let (token, file) = secret(reader, key, file_key, required);
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.mistake(key, "holds characters that a header cannot carry");
    }
    Secret { value: token.into(), file }
}

/// The key that signs calls, byte for byte.
pub(super) fn secret_key(reader: &mut Reader<'_>, required: bool) -> Secret {
    let (key, file) = secret(reader, "portal.secret_key", "portal.secret_key_file", required);
    Secret { value: key.into(), file }
}

/// Value or file, whichever the later layer sets.
fn secret(
    reader: &mut Reader<'_>,
    key: &str,
    file_key: &str,
    required: bool,
) -> (String, Option<PathBuf>) {
    let (value, path) = (reader.text(key), reader.text(file_key));
    let rank = |key| reader.source(key).map_or(0, super::layers::Source::rank);
    let (value_rank, file_rank) = (rank(key), rank(file_key));
    match (value.is_empty(), path.is_empty()) {
        (false, false) if value_rank == file_rank => {
            reader.mistake(key, &format!("set together with {file_key}; set one of them"));
            (String::new(), None)
        }
        (false, true) => (value, None),
        (false, false) if value_rank > file_rank => (value, None),
        (_, false) if required => {
            let path = PathBuf::from(path);
            let secret = reader.accept(file_key, read_file(&path)).unwrap_or_default();
            (secret, Some(path))
        }
        (true, true) if required => {
            reader.mistake(key, &format!("not set; set it or {file_key}"));
            (String::new(), None)
        }
        // A command that needs no secret reads no file.
        (_, _) => (String::new(), None),
    }
}

/// The secret in a file: all of it, less one newline at its end.
pub fn read_file(path: &Path) -> Result<String, String> {
    let place = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {place}: {error}"))?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(format!("{place} is empty"));
    }
    Ok(secret.to_owned())
}
