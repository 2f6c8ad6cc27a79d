//! The table of all rules.

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for example `StageNameCasing`.
    pub name: &'static str,
    /// What it asks for, one sentence without a full stop.
    pub summary: &'static str,
    /// Whose rule it is.
    pub set: Set,
    /// What it takes to find where it is broken.
    pub found_by: FoundBy,
    /// Whether it is on unless somebody turns it off; the others are turned on by name.
    pub on: bool,
    /// Its page: what is bad, what is good, and why. Markdown.
    pub page: &'static str,
}

/// Whose rule it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// One of the rules that docker's own builder has under this name.
    Docker,
    /// One that only kiln has.
    Kiln,
}

/// What it takes to find where a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The text of the Dockerfile.
    Text,
    /// The plan of a build: values of variables, base images, options.
    Plan,
}

impl Rule {
    /// The address of docker's page of the rule; kiln's own rules have none.
    #[must_use]
    pub fn url(&self) -> Option<String> {
        let slug = kebab(self.name);
        (self.set == Set::Docker)
            .then(|| format!("https://docs.docker.com/go/dockerfile/rule/{slug}/"))
    }
}

/// `JSONArgsRecommended` as `json-args-recommended`.
fn kebab(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut slug = String::with_capacity(name.len() + 8);
    for (at, letter) in name.char_indices() {
        let lower = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_lowercase);
        let starts_word = letter.is_ascii_uppercase() && at > 0 && (lower(at - 1) || lower(at + 1));
        if starts_word {
            slug.push('-');
        }
        slug.push(letter.to_ascii_lowercase());
    }
    slug
}

/// All rules: docker's in the order of A17, then kiln's.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    DOCKER.iter().chain(KILN)
}

/// The rule of a name, in any case.
#[must_use]
pub fn rule(name: &str) -> Option<&'static Rule> {
    rules().find(|rule| rule.name.eq_ignore_ascii_case(name))
}

/// A row of the table, with the page of the rule.
macro_rules! row {
    ($set:ident $by:ident $on:literal $name:literal $summary:literal) => {
        Rule {
            name: $name,
            summary: $summary,
            set: Set::$set,
            found_by: FoundBy::$by,
            on: $on,
            page: include_str!(concat!("../../../docs/rules/", $name, ".md")),
        }
    };
}

const DOCKER: &[Rule] = &[
    row!(Docker Text true "StageNameCasing" "Stage names should be lowercase"),
    row!(Docker Text true "FromAsCasing" "The 'as' keyword should match the case of the 'from' keyword"),
    row!(Docker Text true "NoEmptyContinuation" "Empty continuation lines will become errors in a future release"),
    row!(Docker Text true "ConsistentInstructionCasing" "All commands within the Dockerfile should use the same casing (either upper or lower)"),
    row!(Docker Text true "DuplicateStageName" "Stage names should be unique"),
    row!(Docker Text true "ReservedStageName" "Reserved words should not be used as stage names"),
    row!(Docker Plan true "JSONArgsRecommended" "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"),
    row!(Docker Text true "MaintainerDeprecated" "The MAINTAINER instruction is deprecated, use a label instead to define an image author"),
    row!(Docker Plan true "UndefinedArgInFrom" "FROM command must use declared ARGs"),
    row!(Docker Plan true "InvalidDefaultArgInFrom" "Default value for global ARG results in an empty or invalid base image name"),
    row!(Docker Plan true "WorkdirRelativePath" "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"),
    row!(Docker Plan true "UndefinedVar" "Variables should be defined before their use"),
    row!(Docker Text true "MultipleInstructionsDisallowed" "Multiple instructions of the same type should not be used in the same stage"),
    row!(Docker Text true "LegacyKeyValueFormat" "Legacy key/value format with whitespace separator should not be used"),
    row!(Docker Plan true "InvalidBaseImagePlatform" "Base image platform does not match expected target platform"),
    row!(Docker Plan true "RedundantTargetPlatform" "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"),
    row!(Docker Plan true "FromPlatformFlagConstDisallowed" "FROM --platform flag should not use a constant value"),
    row!(Docker Text true "SecretsUsedInArgOrEnv" "Sensitive data should not be used in the ARG or ENV commands"),
    row!(Docker Plan true "CopyIgnoredFile" "Attempting to Copy file that is excluded by .dockerignore"),
    row!(Docker Text false "InvalidDefinitionDescription" "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`"),
    row!(Docker Plan true "ExposeProtoCasing" "Protocol in EXPOSE instruction should be lowercase"),
    row!(Docker Plan true "ExposeInvalidFormat" "IP address and host-port mapping should not be used in EXPOSE instruction"),
];

const KILN: &[Rule] = &[
    row!(Kiln Plan true "Unsupported" "What kiln cannot do yet is said before anything runs"),
    row!(Kiln Plan true "MisspeltStage" "Names that are nearly those of stages should be those of stages"),
    row!(Kiln Plan true "UnusedBuildArg" "Every --build-arg should be declared by an ARG"),
    row!(Kiln Plan true "UnusedBuildContext" "Every --build-context should be named by the Dockerfile"),
    row!(Kiln Plan true "UnknownSyntax" "The language that `# syntax=` asks for should be one that is built in"),
    row!(Kiln Text true "UnpinnedImage" "Images should be named with a version or a digest, not with latest"),
    row!(Kiln Text true "LastUserRoot" "The last USER of an image should not be root"),
    row!(Kiln Text false "UserNotSet" "An image should set its USER"),
    row!(Kiln Text true "AptGetInsteadOfApt" "Scripts should use apt-get, which keeps its interface, and not apt"),
    row!(Kiln Text true "AptGetAssumeYes" "apt-get should be told not to ask"),
    row!(Kiln Text true "AptGetNoInstallRecommends" "apt-get should install only what is asked for"),
    row!(Kiln Text true "AptGetCleanLists" "The lists of apt-get should be removed in the RUN that fetches them"),
    row!(Kiln Text true "AptGetUpdateAlone" "apt-get update should stand in one RUN with what it is for"),
    row!(Kiln Text true "ApkNoCache" "apk should keep no package index"),
    row!(Kiln Text true "CleanPackageCache" "The caches of dnf, yum and zypper should be removed in the RUN that fills them"),
    row!(Kiln Text false "PackageUpgrade" "Packages should be upgraded by a newer base image"),
    row!(Kiln Text false "UnpinnedPackage" "Packages should be installed in a named version"),
    row!(Kiln Text false "PipNoCacheDir" "pip should keep no downloads"),
    row!(Kiln Text true "CopyInsteadOfAdd" "COPY should be used where nothing is fetched or unpacked"),
    row!(Kiln Text true "CopyBeforeInstall" "Dependencies should be installed before all of the context is copied"),
    row!(Kiln Text true "SecretFileCopied" "Files with secrets should not be copied into an image"),
    row!(Kiln Text true "CredentialsInUrl" "Addresses should carry no credentials"),
    row!(Kiln Text true "DownloadPipedWithoutPipefail" "A download that is piped should be able to fail the step"),
    row!(Kiln Text true "CertificateCheckDisabled" "Downloads should check certificates"),
    row!(Kiln Text true "PlainHttpDownload" "Downloads over plain HTTP should be checked by a sum"),
    row!(Kiln Text true "LostShellState" "A RUN should not end with a change of its shell"),
    row!(Kiln Text false "CdInsteadOfWorkdir" "WORKDIR should be used where all of a RUN is in one directory"),
    row!(Kiln Text true "SudoInRun" "USER should be used and not sudo"),
    row!(Kiln Text true "WorldWritable" "Files should not be writable for everybody"),
    row!(Kiln Text true "UseraddNoLogInit" "useradd with a large user id should write no log files"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_addresses() {
        let url = |name| rule(name).and_then(Rule::url);
        let address = |slug| {
            Some(format!(
                "https://docs.docker.com/go/dockerfile/rule/{slug}/"
            ))
        };
        assert_eq!(url("jsonargsrecommended"), address("json-args-recommended"));
        assert_eq!(
            url("SecretsUsedInArgOrEnv"),
            address("secrets-used-in-arg-or-env")
        );
        assert_eq!(url("UnusedBuildArg"), None);
        assert_eq!(DOCKER.len(), 22, "A17");
    }
}
