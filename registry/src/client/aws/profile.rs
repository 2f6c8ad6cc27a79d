//! The profiles of AWS' `credentials` and `config` files.

use std::collections::BTreeMap;

/// How many sections and settings of a file are kept.
const MAX_SETTINGS: usize = 10_000;

/// The settings of all profiles of a file, by profile.
pub(super) type Profiles = BTreeMap<String, BTreeMap<String, String>>;

/// Parses a file; `config` is the one whose sections are called `profile NAME`. Lines that are no
/// settings, and sections that are no profiles, are passed over as AWS' own programs do.
pub(super) fn parse(text: &str, config: bool) -> Profiles {
    let mut profiles = Profiles::new();
    let mut section = None;
    let mut count = 0;
    for line in text.lines() {
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || count >= MAX_SETTINGS {
            continue;
        }
        count += 1;
        if let Some(name) = line.strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default().trim();
            section = profile(name, config);
            if let Some(name) = &section {
                profiles.entry(name.clone()).or_default();
            }
        } else if let (Some(name), Some((key, value)), false) =
            (&section, line.split_once('='), nested)
        {
            let settings = profiles.entry(name.clone()).or_default();
            settings.insert(
                key.trim().to_lowercase(),
                uncommented(value.trim()).to_owned(),
            );
        }
    }
    profiles
}

/// The profile that a section is of.
fn profile(section: &str, config: bool) -> Option<String> {
    if !config || section == "default" {
        return Some(section.to_owned());
    }
    let name = section.strip_prefix("profile")?;
    let named = name.starts_with([' ', '\t']);
    named.then(|| name.trim().to_owned())
}

/// A value without the comment behind it.
fn uncommented(value: &str) -> &str {
    let end = [" #", " ;", "\t#", "\t;"];
    let end = end.iter().filter_map(|mark| value.find(mark)).min();
    value[..end.unwrap_or(value.len())].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_7_profiles_of_both_files() {
        let credentials = parse(
            "# a comment\n[default]\naws_access_key_id = A\naws_secret_access_key=s=#1 ; why\n\
             nonsense\n[ other ]\r\nAWS_ACCESS_KEY_ID=B\r\n",
            false,
        );
        assert_eq!(credentials["default"]["aws_access_key_id"], "A");
        assert_eq!(credentials["default"]["aws_secret_access_key"], "s=#1");
        assert_eq!(credentials["other"]["aws_access_key_id"], "B");
        let config = parse(
            "early=1\n[default]\nregion=r\ns3 =\n  nested = 1\n[profile  dev]\nrole_arn = x\n\
             [dev2]\na=b\n[sso-session s]\nc=d\n[profiles]\ne=f\n",
            true,
        );
        assert_eq!(config["default"]["region"], "r");
        assert!(!config["default"].contains_key("nested"));
        assert_eq!(config["dev"]["role_arn"], "x");
        assert_eq!(config.len(), 2);
    }
}
