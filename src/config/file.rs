//! The TOML file: sections of settings, and the list of keys.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{Kind, SETTINGS, Setting, Source, Value, find, nearest};
use super::{ConfigError, KeyFile, Settled, missing};
use crate::auth::Algorithm;

/// The fields of one `[[auth.keys]]`, all of them needed.
const KEY_FIELDS: [&str; 3] = ["kid", "alg", "file"];

/// The file, to say where in it something is.
struct Page<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Page<'_> {
    /// Line and column, counted from 1, columns in characters.
    fn place(&self, span: Range<usize>) -> Source {
        let before = &self.text[..self.text.floor_char_boundary(span.start)];
        let line = 1 + before.matches('\n').count();
        let begun = before.rsplit('\n').next().unwrap_or("");
        Source::File {
            path: self.path.to_owned(),
            line,
            column: 1 + begun.chars().count(),
        }
    }

    /// What a path in the file is relative to.
    fn resolve(&self, path: PathBuf) -> PathBuf {
        self.path
            .parent()
            .map_or(path.clone(), |directory| directory.join(path))
    }
}

/// Puts the file's settings over what is settled, and gives its keys.
pub(super) fn read(
    path: &Path,
    text: &str,
    settled: &mut Settled,
) -> Result<Vec<KeyFile>, ConfigError> {
    let page = Page { path, text };
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: page.place(error.span().unwrap_or(0..0)),
        why: error.message().replace('\n', " "),
    })?;
    let mut keys = Vec::new();
    for (section, value) in document.get_ref() {
        let name = section.get_ref().as_ref();
        if !SETTINGS.iter().any(|setting| setting.section == name) {
            return Err(unknown_section(&page, section.span(), name));
        }
        let DeValue::Table(table) = value.get_ref() else {
            return Err(ConfigError::Syntax {
                place: page.place(value.span()),
                why: format!("`{name}` is a section; write [{name}]"),
            });
        };
        for (key, value) in table {
            if name == "auth" && key.get_ref() == "keys" {
                keys = read_keys(&page, value)?;
            } else {
                read_setting(&page, name, key, value, settled)?;
            }
        }
    }
    Ok(keys)
}

fn read_setting(
    page: &Page<'_>,
    section: &str,
    name: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
    settled: &mut Settled,
) -> Result<(), ConfigError> {
    let key = format!("{section}.{}", name.get_ref());
    let Some(index) = find(&key) else {
        return Err(unknown_key(page, section, name.span(), &key));
    };
    let place = page.place(value.span());
    match SETTINGS[index].kind.from_toml(value.get_ref()) {
        Ok(Value::Path(path)) => settled.put(index, Value::Path(page.resolve(path)), place),
        Ok(value) => settled.put(index, value, place),
        Err(complaint) => {
            return Err(ConfigError::BadValue {
                place,
                key,
                complaint,
            });
        }
    }
    Ok(())
}

fn unknown_section(page: &Page<'_>, span: Range<usize>, name: &str) -> ConfigError {
    let mut sections: Vec<_> = SETTINGS.iter().map(|setting| setting.section).collect();
    sections.dedup();
    let remedy = match nearest(name, sections.iter().map(ToString::to_string)) {
        Some(near) => format!("did you mean [{near}]?"),
        None => format!("the sections are {}", sections.join(", ")),
    };
    ConfigError::UnknownKey {
        place: page.place(span),
        key: name.to_owned(),
        remedy,
    }
}

fn unknown_key(page: &Page<'_>, section: &str, span: Range<usize>, key: &str) -> ConfigError {
    let of_section = || SETTINGS.iter().filter(|setting| setting.section == section);
    let remedy = match nearest(key, of_section().map(Setting::key)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let names: Vec<_> = of_section().map(|setting| setting.name).collect();
            format!("[{section}] has {}", names.join(", "))
        }
    };
    ConfigError::UnknownKey {
        place: page.place(span),
        key: key.to_owned(),
        remedy,
    }
}

fn read_keys(page: &Page<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<KeyFile>, ConfigError> {
    let not_tables = |span| ConfigError::Syntax {
        place: page.place(span),
        why: "`auth.keys` is a list of tables; write [[auth.keys]] before each key".into(),
    };
    let DeValue::Array(items) = value.get_ref() else {
        return Err(not_tables(value.span()));
    };
    let mut keys = Vec::with_capacity(items.len());
    for item in items.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            return Err(not_tables(item.span()));
        };
        keys.push(read_key(page, table)?);
    }
    Ok(keys)
}

fn read_key(page: &Page<'_>, table: &DeTable<'_>) -> Result<KeyFile, ConfigError> {
    let mut fields: [Option<(String, Source)>; KEY_FIELDS.len()] = [None, None, None];
    for (name, value) in table {
        let key = format!("auth.keys.{}", name.get_ref());
        let Some(index) = KEY_FIELDS.iter().position(|field| field == name.get_ref()) else {
            let remedy = format!("a key has {}", KEY_FIELDS.join(", "));
            return Err(ConfigError::UnknownKey {
                place: page.place(name.span()),
                key,
                remedy,
            });
        };
        let place = page.place(value.span());
        match Kind::Text.from_toml(value.get_ref()) {
            Ok(Value::Text(text)) => fields[index] = Some((text, place)),
            Ok(other) => panic!("a text is a text, not {other:?}"),
            Err(complaint) => {
                return Err(ConfigError::BadValue {
                    place,
                    key,
                    complaint,
                });
            }
        }
    }
    let [kid, alg, file] = fields;
    let (kid, _) = kid.ok_or_else(|| missing("auth.keys.kid"))?;
    let (alg, alg_place) = alg.ok_or_else(|| missing("auth.keys.alg"))?;
    let (file, _) = file.ok_or_else(|| missing("auth.keys.file"))?;
    let algorithm = alg
        .parse::<Algorithm>()
        .map_err(|_| ConfigError::BadValue {
            place: alg_place,
            key: "auth.keys.alg".into(),
            complaint: super::Complaint::NotAChoice {
                choices: Algorithm::ALL.map(Algorithm::name).join(", "),
                found: alg.clone(),
            },
        })?;
    Ok(KeyFile {
        kid,
        algorithm,
        file: page.resolve(file.into()),
    })
}
