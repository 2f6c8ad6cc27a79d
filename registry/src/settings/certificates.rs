//! `certs.d`: authorities to trust, and certificates to show, for one registry (D4.1).

use std::path::{Path, PathBuf};

use super::SettingsError;
use crate::files::is_absent;

/// The certificates that belong to one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// PEM files of authorities to trust besides the system's.
    pub authorities: Vec<PathBuf>,
    /// What kiln shows of itself: the first pair, as a connection shows one only.
    pub client: Option<ClientPair>,
}

/// A certificate and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPair {
    /// The certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.client.is_none()
    }

    /// Reads the folders of one registry, under each of its names.
    ///
    /// # Errors
    /// [`SettingsError`] when a folder cannot be read or a pair is not complete.
    pub(super) fn read(folders: &[PathBuf], names: &[String]) -> Result<Self, SettingsError> {
        let mut found = Self::default();
        for folder in folders {
            for name in names {
                found.add(&folder.join(name))?;
            }
        }
        Ok(found)
    }

    fn add(&mut self, folder: &Path) -> Result<(), SettingsError> {
        let failed = |source| SettingsError::Read {
            file: folder.to_owned(),
            source,
        };
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error)
                if is_absent(&error) || error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.sort();
        for path in &paths {
            let partner = |extension: &str| {
                let partner = path.with_extension(extension);
                match paths.contains(&partner) {
                    true => Ok(partner),
                    false => Err(SettingsError::Partner {
                        file: path.clone(),
                        missing: partner,
                    }),
                }
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.authorities.push(path.clone()),
                Some("cert") => {
                    let key = partner("key")?;
                    self.client.get_or_insert_with(|| ClientPair {
                        certificate: path.clone(),
                        key,
                    });
                }
                Some("key") => drop(partner("cert")?),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn d4_1_folders_of_a_registry_are_read_together() {
        let folder = tempfile::tempdir().unwrap();
        let [user, system] = ["user", "system"].map(|name| folder.path().join(name));
        for file in [
            "user/r.example:5000/b.crt",
            "user/r.example:5000/a.crt",
            "user/r.example:5000/README",
            "user/r.example/no.crt",
            "system/r.example:5000/client.cert",
            "system/r.example:5000/client.key",
            "system/r.example:5000/other.cert",
            "system/r.example:5000/other.key",
            "system/r.example:5000/ca.crt",
        ] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let names = ["r.example:5000".to_owned()];
        let found = Certificates::read(&[user.clone(), system.clone()], &names).unwrap();
        let (user, system) = (user.join(&names[0]), system.join(&names[0]));
        assert_eq!(
            found.authorities,
            [
                user.join("a.crt"),
                user.join("b.crt"),
                system.join("ca.crt")
            ]
        );
        assert_eq!(found.client.unwrap().key, system.join("client.key"));
        let none = Certificates::read(&[folder.path().join("none")], &names).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn d4_1_a_pair_without_its_partner_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for (there, missing) in [("client.cert", "client.key"), ("client.key", "client.cert")] {
            let names = [there.to_owned()];
            let place = folder.path().join(there);
            fs::create_dir(&place).unwrap();
            fs::write(place.join(there), "").unwrap();
            let error = Certificates::read(&[folder.path().to_owned()], &names).unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(there) && shown.contains(missing), "{shown}");
        }
    }
}
