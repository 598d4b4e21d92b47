//! Static tokens of `--token-auth-file`: CSV of token, user name, uid and optional groups.

use std::collections::HashMap;

use async_trait::async_trait;

use super::{Authenticated, Rejected, TokenAuthenticator, User};

/// A line of the file is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error(
        "token file must have at least 3 columns (token, user name, user uid), found {found} in line {line}"
    )]
    Columns { line: usize, found: usize },
}

/// Tokens of a file, for good.
#[derive(Debug, Default)]
pub struct TokenFile(HashMap<String, User>);

impl TokenFile {
    /// # Errors
    /// A line has too few columns. Lines with an empty token are skipped, as upstream does.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let mut tokens = HashMap::new();
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let columns = columns(line);
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(FileError::Columns { line: i + 1, found: columns.len() });
            };
            if token.is_empty() {
                tracing::warn!(line = i + 1, "empty token in the token file, skipping the line");
                continue;
            }
            let groups = rest.first().map_or(Vec::new(), |groups| {
                groups.split(',').map(|g| g.trim().to_owned()).filter(|g| !g.is_empty()).collect()
            });
            let user = User { name: name.clone(), uid: uid.clone(), groups, ..User::default() };
            tokens.insert(token.clone(), user);
        }
        Ok(Self(tokens))
    }
}

/// Columns of a line of CSV, quoted ones without their quotes.
fn columns(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(column) = columns.last_mut() else { break };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            c => column.push(c),
        }
    }
    columns.into_iter().map(|c| c.trim().to_owned()).collect()
}

#[async_trait]
impl TokenAuthenticator for TokenFile {
    async fn authenticate_token(
        &self,
        token: &str,
        _audiences: &[String],
    ) -> Result<Option<Authenticated>, Rejected> {
        let user = self.0.get(token).cloned();
        Ok(user.map(|user| Authenticated { user, ..Authenticated::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens() {
        let file = TokenFile::parse("t1,bob,1\n\nt2,eve,2,\"a,b \"\n,x,3\n").expect("a file");
        assert_eq!(file.0.len(), 2);
        let groups = |t: &str| file.0.get(t).map(|u| u.groups.clone());
        assert_eq!(groups("t1"), Some(vec![]));
        assert_eq!(groups("t2"), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(TokenFile::parse("a,b").err(), Some(FileError::Columns { line: 1, found: 2 }));
    }
}
