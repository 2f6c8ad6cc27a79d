//! Secrets in addresses, hidden.

/// A text without the passwords and tokens in the addresses that it holds. What hides them is as
/// long as they are, so that places in the text stay where they were.
#[must_use]
pub fn masked(text: &str) -> String {
    let mut clean = text.to_owned();
    for (scheme, _) in text.match_indices("://") {
        let start = scheme + 3;
        let end = text[start..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>'))
            .map_or(text.len(), |length| start + length);
        let address = &text[start..end];
        let authority = &address[..address.find(['/', '?', '#']).unwrap_or(address.len())];
        if let Some((user, _)) = authority.rsplit_once('@') {
            let secret = user.find(':').map_or(0, |colon| colon + 1);
            hide(&mut clean, start + secret, start + user.len());
        }
        for (name, _) in address.match_indices(['?', '&']) {
            let parameter = address[name + 1..]
                .split(['&', '#'])
                .next()
                .unwrap_or_default();
            if let Some((key, value)) = parameter.split_once('=').filter(|(key, _)| secret(key)) {
                let from = start + name + 1 + key.len() + 1;
                hide(&mut clean, from, from + value.len());
            }
        }
    }
    clean
}

/// Hides a part of a text; the name of a variable is no secret, nor is git's usual user.
fn hide(text: &mut String, from: usize, to: usize) {
    let part = &text[from..to];
    if !part.starts_with('$') && part != "git" {
        text.replace_range(from..to, &"*".repeat(to - from));
    }
}

/// Whether the parameter of an address sounds as if it were a secret.
fn secret(name: &str) -> bool {
    const WORDS: [&str; 7] = [
        "token",
        "secret",
        "passw",
        "signature",
        "sig",
        "key",
        "auth",
    ];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_addresses_are_hidden_where_they_stand() {
        let cases = [
            ("ADD https://u:geheim@h/x /y", "ADD https://u:******@h/x /y"),
            (
                "https://ghp_1@h/x http://a:b@h",
                "https://*****@h/x http://a:*@h",
            ),
            (
                "x://h/p?a=1&X-Amz-Signature=ff&b=2#c",
                "x://h/p?a=1&X-Amz-Signature=**&b=2#c",
            ),
            (
                "ssh://git@h/r https://u:$PASS@h",
                "ssh://git@h/r https://u:$PASS@h",
            ),
            ("https://h/p@v1?ref=main", "https://h/p@v1?ref=main"),
            ("\"http://u:p@ss@h\" ://", "\"http://u:****@h\" ://"),
        ];
        for (text, shown) in cases {
            assert_eq!(masked(text), shown);
        }
    }
}
