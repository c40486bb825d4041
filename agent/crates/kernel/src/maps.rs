//! The maps by name: of a loaded object, or of pins alone.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use tidegate_abi::map::name;

use crate::{KernelError, tables::map_error};

/// Every map, until somebody takes it.
pub(crate) struct Maps(BTreeMap<&'static str, Map>);

impl Maps {
    /// The maps of a loaded object.
    pub(crate) fn of_object(ebpf: &mut Ebpf) -> Self {
        Self(name::ALL.into_iter().filter_map(|name| Some((name, ebpf.take_map(name)?))).collect())
    }

    /// The maps that are pinned in a folder.
    pub(crate) fn of_pins(folder: &Path) -> Result<Self, KernelError> {
        let open = |name| Map::from_map_data(MapData::from_pin(folder.join(name))?);
        name::ALL
            .into_iter()
            .map(|name| Ok((name, open(name).map_err(map_error(name))?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Takes a map.
    pub(crate) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.0.remove(name)
    }

    /// Takes a map as one of its kind.
    pub(crate) fn take<T>(&mut self, name: &'static str) -> Result<T, KernelError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = self.take_map(name).ok_or(KernelError::Object { kind: "map", name })?;
        T::try_from(map).map_err(map_error(name))
    }

    /// Takes an array of programs: what aya makes of one takes programs that aya has loaded, and no others.
    pub(crate) fn take_programs(&mut self, name: &'static str) -> Result<MapData, KernelError> {
        match self.take_map(name) {
            Some(Map::ProgramArray(map)) => Ok(map),
            _ => Err(KernelError::Object { kind: "map", name }),
        }
    }
}
