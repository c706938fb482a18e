//! Where containers and networks meet: start and end of a container, connecting and disconnecting it, what inspect shows.

use crate::container::config::{EndpointSettings, PortMap};
use crate::container::process::Owner;
use crate::container::record::{Id, Record, Status};
use crate::container::report::{Failure, Step};
use crate::daemon::{Daemon, Then};
use crate::error::{Error, Result};
use crate::network::create::check_endpoint;
use crate::network::model::{Driver, Network};
use crate::network::sandbox::{Namespace, Request, mode_name, namespace_of};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn request(record: &Record, files: PathBuf) -> Request<'_> {
    Request { container: &record.id, name: &record.name, config: &record.config, host: &record.host, endpoints: &record.networks, files }
}

impl Daemon {
    /// What of a new container's networks can be refused before it is made.
    pub(crate) fn check_container_network(&self, record: &Record) -> Result<()> {
        self.networks.check_create(&request(record, PathBuf::new()))
    }

    /// Decides a container's networks for its start, and writes its files; the directory that holds them.
    pub(crate) fn plan_container_network(&mut self, record: &Record) -> Result<PathBuf> {
        if let Namespace::Of(other) = namespace_of(&record.host.network_mode) {
            let other = self.containers.resolve(&other)?;
            return Ok(self.container_dir(&other));
        }
        let files = self.container_dir(&record.id);
        self.plan_network(&request(record, files.clone()))?;
        Ok(files)
    }

    /// A cloned child waits for its network, while it mounts: interfaces, ports, names, rules; then it may go on.
    pub(crate) fn attach_container_network(&mut self, number: u64) {
        let Some(process) = self.processes.get(&number) else { return };
        let (owner, pid) = (process.owner.clone(), process.pid);
        let Owner::Container(id) = owner else { return self.send_go(number, &[]) };
        let own = self.containers.get(&id).is_some_and(|c| namespace_of(mode_name(&c.record.host.network_mode)) == Namespace::Own);
        if !own {
            return self.send_go(number, &[]);
        }
        let container = id.clone();
        self.attach_network(&container, pid, move |daemon, outcome| match outcome {
            Ok(()) => daemon.send_go(number, &[]),
            Err(error) => {
                daemon.refusals.insert(id, error);
                daemon.abort_launch(number, Failure::new(Step::Network, "", 0));
            }
        });
    }

    /// The networks of a container as inspect and the list show them.
    pub(crate) fn shown_networks(&self, record: &Record) -> BTreeMap<String, EndpointSettings> {
        match self.networks.sandboxes.get(&record.id) {
            Some(sandbox) if !sandbox.endpoints.is_empty() => {
                sandbox.endpoints.iter().map(|e| (e.network_name.clone(), e.view())).collect()
            }
            _ => record
                .networks
                .iter()
                .map(|(name, settings)| {
                    let mut settings = settings.clone();
                    if let Ok(network) = self.networks.find(mode_name(name)) {
                        settings.network_id.clone_from(&network.id);
                    }
                    settings.mac_address.clear();
                    (mode_name(name).to_string(), settings)
                })
                .collect(),
        }
    }

    /// The ports of a running container, published or only exposed.
    pub(crate) fn shown_ports(&self, record: &Record) -> PortMap {
        self.networks.sandboxes.get(&record.id).map(|sandbox| sandbox.ports()).unwrap_or_default()
    }

    /// Connects a container to a network; `then` when it is done and durable.
    pub(crate) fn connect_container(&mut self, id: &Id, network: &Network, settings: EndpointSettings, then: Then<Result<()>>) {
        if let Err(refusal) = self.try_connect(id, network, settings) {
            return then(self, Err(refusal));
        }
        self.save_container(id, move |daemon, saved| then(daemon, saved.map_err(|e| Error::io("save the container", &e))));
    }

    fn try_connect(&mut self, id: &Id, network: &Network, mut settings: EndpointSettings) -> Result<()> {
        let container = self.containers.find(id)?;
        let record = container.record.clone();
        if container.removing || matches!(record.state.status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "Container {id} is marked for removal and cannot be connected or disconnected to the network"
            )));
        }
        let mode = mode_name(&record.host.network_mode);
        if matches!(namespace_of(mode), Namespace::Of(_)) || (namespace_of(mode) == Namespace::Host && network.driver != Driver::Host) {
            return Err(Error::invalid(
                "container sharing network namespace with another container or host cannot be connected to any other network",
            ));
        }
        if network.driver == Driver::Host {
            return Err(Error::invalid("container cannot be disconnected from host network or connected to host network"));
        }
        if network.driver == Driver::Null || (mode == "none" && record.networks.contains_key("none")) {
            return Err(Error::invalid(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode",
            ));
        }
        if network.config_only {
            return Err(Error::forbidden(format!("configuration network {} cannot be joined", network.name)));
        }
        if record.networks.iter().any(|(name, known)| mode_name(name) == network.name || known.network_id == network.id) {
            return Err(if container.record.state.is_running() {
                Error::forbidden(format!("endpoint with name {} already exists in network {}", record.name, network.name))
            } else {
                Error::forbidden(format!("container {id} is already attached to network {}", network.name))
            });
        }
        check_endpoint(&network.name, Some(network), &settings)?;
        settings.network_id.clone_from(&network.id);
        if record.state.is_running() {
            self.connect_running(id, &record, network, settings.clone())?;
        }
        self.containers.find_mut(id)?.record.networks.insert(network.name.clone(), settings);
        Ok(())
    }

    fn connect_running(&mut self, id: &Id, record: &Record, network: &Network, settings: EndpointSettings) -> Result<()> {
        let sandbox = self.networks.sandboxes.remove(&**id).ok_or_else(|| Error::conflict(format!("container {id} has no network")))?;
        let number = sandbox.endpoints.len();
        let planned = self.networks.plan_endpoint(&sandbox, &record.config, &network.name, settings, number);
        self.networks.sandboxes.insert(id.to_string(), sandbox);
        let endpoint = planned?;
        match self.networks.connect(id, endpoint.clone()) {
            Ok(sockets) => {
                if let Some(sockets) = sockets {
                    self.networks.write_resolver(id);
                    self.serve_resolver(id, sockets);
                }
                self.emit_network("connect", &network.id, &network.name, network.driver, Some(id));
                Ok(())
            }
            Err(failure) => {
                self.networks.forget_endpoint(&endpoint);
                Err(failure)
            }
        }
    }

    /// Takes a container out of a network; `then` when it is done and durable.
    pub(crate) fn disconnect_container(&mut self, id: &Id, network: &Network, then: Then<Result<()>>) {
        if let Err(refusal) = self.try_disconnect(id, network) {
            return then(self, Err(refusal));
        }
        self.save_container(id, move |daemon, saved| then(daemon, saved.map_err(|e| Error::io("save the container", &e))));
    }

    fn try_disconnect(&mut self, id: &Id, network: &Network) -> Result<()> {
        if network.driver == Driver::Host {
            return Err(Error::invalid("container cannot be disconnected from host network or connected to host network"));
        }
        let record = &self.containers.find(id)?.record;
        let known = record.networks.iter().find(|(name, known)| mode_name(name) == network.name || known.network_id == network.id);
        let Some(name) = known.map(|(name, _)| name.clone()) else {
            return Err(Error::system(format!("container {id} is not connected to network {}", network.name)));
        };
        let sandbox = self.networks.sandboxes.get(&**id).filter(|_| record.state.is_running());
        if sandbox.is_some_and(|s| s.endpoints.iter().any(|e| e.network == network.id)) {
            self.unpublish(id, &network.id);
            self.networks.disconnect(id, &network.id)?;
            self.emit_network("disconnect", &network.id, &network.name, network.driver, Some(id));
        }
        self.containers.find_mut(id)?.record.networks.remove(&name);
        Ok(())
    }

    /// A new name is a new DNS name.
    pub(crate) fn rename_in_networks(&mut self, id: &str, new: &str) {
        let networks = &mut self.networks;
        let Some(sandbox) = networks.sandboxes.get_mut(id) else { return };
        let old = std::mem::replace(&mut sandbox.name, new.to_string());
        for endpoint in &mut sandbox.endpoints {
            let addresses: Vec<_> = endpoint.addresses.iter().map(|a| a.address).collect();
            let Some(zone) = networks.zones.get_mut(&endpoint.network) else { continue };
            zone.remove(&endpoint.names, &addresses);
            for name in endpoint.names.iter_mut().filter(|name| **name == old) {
                *name = new.to_string();
            }
            zone.add(&endpoint.names, &addresses);
        }
    }
}
