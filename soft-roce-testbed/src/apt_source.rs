//! The machine's own apt source, with another suite: pure text in, text out.
//!
//! The kernels come from wherever this machine gets its packages, checked with the same key. Nothing
//! is written to `/etc`: the derived source is a file of ours that one apt call is pointed at.

use std::fmt::Write as _;

/// Longest source text that is looked at; anything larger is no apt source.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// One Debian source: where from, and what its signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AptSource {
    uri: String,
    suite: String,
    components: Vec<String>,
    /// The `Signed-By` value: a keyring path, or an inline key block of several lines.
    signed_by: Option<String>,
}

/// Why no source could be derived.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AptSourceError {
    /// Neither deb822 stanza nor one-line entry with a release suite and component `main`.
    #[error("no configured apt source offers a Debian release with component main")]
    NoRelease,
}

impl AptSource {
    /// Finds the first source in deb822 text (`*.sources`) that offers a plain Debian release.
    pub fn from_deb822(text: &str) -> Result<Self, AptSourceError> {
        if text.len() > SOURCE_BYTES_MAX {
            return Err(AptSourceError::NoRelease);
        }
        stanzas(text)
            .iter()
            .find_map(|stanza| Self::from_stanza(stanza))
            .ok_or(AptSourceError::NoRelease)
    }

    /// Finds the first source in one-line text (`sources.list`) that offers a plain Debian release.
    pub fn from_one_line(text: &str) -> Result<Self, AptSourceError> {
        if text.len() > SOURCE_BYTES_MAX {
            return Err(AptSourceError::NoRelease);
        }
        text.lines()
            .find_map(Self::from_line)
            .ok_or(AptSourceError::NoRelease)
    }

    /// The suite this source is configured for, for example `bookworm`.
    pub fn suite(&self) -> &str {
        &self.suite
    }

    /// The same source as deb822 text, but for `suite`.
    pub fn for_suite(&self, suite: &str) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "Types: deb\nURIs: {}\nSuites: {suite}", self.uri);
        let _ = writeln!(text, "Components: {}", self.components.join(" "));
        if let Some(signed_by) = &self.signed_by {
            let _ = writeln!(text, "Signed-By: {signed_by}");
        }
        text
    }

    fn from_stanza(stanza: &[(String, String)]) -> Option<Self> {
        let field = |name: &str| {
            stanza
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str())
        };
        if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
            return None;
        }
        if !field("Types")?.split_whitespace().any(|kind| kind == "deb") {
            return None;
        }
        let uri = field("URIs")?.split_whitespace().next()?.to_owned();
        let suite = field("Suites")?
            .split_whitespace()
            .find(|suite| is_release(suite))?
            .to_owned();
        let components: Vec<String> = field("Components")?
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        if !components.iter().any(|component| component == "main") {
            return None;
        }
        let signed_by = field("Signed-By").map(str::to_owned);
        Some(Self {
            uri,
            suite,
            components,
            signed_by,
        })
    }

    fn from_line(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (uri, suite) = (words.next()?, words.next()?);
        let components: Vec<String> = words.collect();
        (is_release(&suite) && components.iter().any(|component| component == "main")).then_some(
            Self {
                uri,
                suite,
                components,
                signed_by,
            },
        )
    }
}

/// A release proper, not its updates, security or backports: those live at other addresses or lack a kernel.
fn is_release(suite: &str) -> bool {
    !suite.is_empty() && suite.chars().all(|c| c.is_ascii_lowercase()) && !suite.ends_with('/')
}

fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut all = Vec::new();
    let mut current: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !current.is_empty() {
                all.push(std::mem::take(&mut current));
            }
        } else if line.starts_with([' ', '\t']) {
            // A continuation line; its leading blank is part of the syntax of inline keys.
            if let Some((_, value)) = current.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            current.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "# a comment\nTypes: deb\n# inside\nURIs: http://packages.invalid/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
        Types: deb\nURIs: http://packages.invalid/debian-security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn keeps_address_and_key_and_changes_the_suite() {
        let source = AptSource::from_deb822(DEB822).unwrap();
        assert_eq!(source.suite(), "bookworm");
        assert_eq!(
            source.for_suite("trixie-backports"),
            "Types: deb\nURIs: http://packages.invalid/debian\nSuites: trixie-backports\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn keeps_an_inline_key() {
        let text = "Types: deb deb-src\nURIs: http://packages.invalid/debian\nSuites: trixie\nComponents: main contrib\nSigned-By:\n -----BEGIN\n .\n abc\n";
        let derived = AptSource::from_deb822(text)
            .unwrap()
            .for_suite("trixie-backports");
        assert!(
            derived.contains("Signed-By: \n -----BEGIN\n .\n abc\n"),
            "{derived}"
        );
        assert!(derived.contains("Components: main contrib\n"));
    }

    #[test]
    fn skips_what_is_disabled_or_offers_no_release() {
        let text = "Enabled: no\nTypes: deb\nURIs: http://a.invalid\nSuites: bookworm\nComponents: main\n\n\
            Types: deb\nURIs: http://b.invalid\nSuites: bookworm-security\nComponents: main\n\n\
            Types: deb\nURIs: http://c.invalid\nSuites: stable\nComponents: tools\n";
        assert_eq!(AptSource::from_deb822(text), Err(AptSourceError::NoRelease));
    }

    #[test]
    fn reads_the_one_line_format() {
        let text = "# old\ndeb [arch=amd64 signed-by=/k.gpg] http://packages.invalid/debian bookworm main contrib\n";
        let source = AptSource::from_one_line(text).unwrap();
        assert_eq!(
            source.for_suite("x-y"),
            "Types: deb\nURIs: http://packages.invalid/debian\nSuites: x-y\nComponents: main contrib\nSigned-By: /k.gpg\n"
        );
        assert_eq!(
            AptSource::from_one_line("deb-src http://x.invalid bookworm main\n"),
            Err(AptSourceError::NoRelease)
        );
    }
}
