//! JSON as values are read: strictly, and with errors that name the field.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny},
};

use super::value::BadValue;

/// By its first byte and its syntax: `{"a": 1` is text like any other.
pub(super) fn is_json_object(value: &[u8]) -> bool {
    value.trim_ascii_start().first() == Some(&b'{')
        && serde_json::from_slice::<IgnoredAny>(value).is_ok()
}

/// Errors name the field by its path, `timeouts.connect: ...`, and what there is instead of an unknown one.
pub(super) fn from_json<'de, T: Deserialize<'de>>(value: &'de [u8]) -> Result<T, BadValue> {
    let mut json = serde_json::Deserializer::from_slice(value);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().to_string();
        match path.as_str() {
            "." => BadValue::Field(problem),
            path => BadValue::field(path, problem),
        }
    })
}

/// An object and nothing else: serde takes an array for a struct too, its items for the fields in their order.
pub(super) fn object<'de, D, T>(json: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    json.deserialize_map(ObjectVisitor(PhantomData))
}

/// The same, or `null`.
pub(super) fn optional_object<'de, D, T>(json: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    json.deserialize_option(OptionalObjectVisitor(PhantomData))
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}

struct OptionalObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for OptionalObjectVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_none<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<Option<T>, D::Error> {
        object(json).map(Some)
    }
}
