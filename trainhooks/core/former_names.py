"""Where modules of before are now: `old: home home | name=new name=new`, without the package's name."""

TABLE = """
analyze.final: analyze.distance_to_final
analyze.lead: analyze.lead_sums
analyze.loading: analyze.model_loading
analyze.standin: analyze.skeleton | StandIn=ModelSkeleton stand_in=build_skeleton
analyze.walk: analyze.measure | Walk=CheckpointMeasurer
analyze.writing: analyze.store_writer
array_files: core.array_files
audit: checkpoints.audit.audit
capture: numerics.host model.hooks recording.label_counts | LabelTally=LabelCounter Packed=PackedResults as_now=cloned on_host=cpu_default_device
checks: metrics.arguments recording.arguments
cli.runs: cli.verdict cli.demo cli.inspect
cli.store: cli.verify cli.export cli.plan cli.snapshot
cli.suites: cli.audit
convergence: lead | place=placement_of
convergence.decomposition: lead.decomposition
convergence.draws: lead.draws
convergence.kept: lead.kept_sums
convergence.labellings: lead.labellings
convergence.lead: lead.lead
convergence.learning_rate: lead.learning_rate | place=placement_of
convergence.onset: lead.onset
convergence.passes: lead.passes
convergence.picture: lead.figure
convergence.reading: lead.lead_sums | LeadReader=LeadAccumulator Reading=LeadSums
convergence.references: lead.reference_runs
convergence.run: lead.run_analysis
convergence.speech: lead.claims
convergence.trajectory: lead.trajectory
corpora.belonging: corpora.tokenizer_match
corpora.cutting: corpora.splitting
corpora.opening: corpora.sources
corpora.partial: corpora.resume
corpora.stamps: corpora.fingerprints
cost: recording.timing recording.budget | DeviceClock=DeviceTimer Mark=TimingEvent Thinning=BudgetController
described: recording.run_description
dispatch: recording.pipeline recording.plan recording.timing | DeviceClock=DeviceTimer Dispatch=RecordPipeline Freight=StagingPlan Mark=TimingEvent _Sent=_InFlight freight_of=staging_plan
distributed: model.distributed | Ranks=RankGroup joined=gather_local share=local_tensor share_of=local_slice unflattened=summon_full_params whole=full_tensor
faults: recording.metric_failures
followed: recording.tracked_model | Followed=TrackedModel
head_names: model.head_names
intervene.apply: intervene.steering.real_pass
intervene.bins: intervene.frequency_bins
intervene.compensate: intervene.deletion.variants | Code=DeletionVariant
intervene.curves: intervene.deletion.curves | Curves=DeletionCurves
intervene.directions: intervene.steering.directions intervene.slope | Direction=EditDirection REFERENCES=BASELINES
intervene.effects: intervene.steering.effects intervene.bootstrap
intervene.headline: intervene.deletion.gains | Interval=BootstrapInterval
intervene.orders: intervene.deletion.orders
intervene.over: intervene.along_training | Moment=StepModel Moments=StepModels Trajectory=TrainingCurve
intervene.prune: intervene.deletion.prune
intervene.report: core.formatting
intervene.samples: intervene.steering.few_samples
intervene.solve: intervene.steering.scales
intervene.steer: intervene.steering.edits | Bench=SteeringData
intervene.tokenizer: corpora.tokenizers
labels: recording.label_counts | LabelTally=LabelCounter
lazy: core.lazy
measuring: recording.update_measurement | Measuring=UpdateMeasurement
meeting: model.rendezvous
metrics.folds: metrics.fold_outputs
metrics.gram: numerics.gram
metrics.head_sums: metrics.shared_sums numerics.row_sums | HeadRows=RowSet HeadSums=RowSums
metrics.movement: numerics.movement
metrics.norms: numerics.norms metrics.group_convergence
metrics.own: metrics.record_info recording.budget | OWN_VARIABLES=RECORD_VARIABLES Thinning=BudgetController own_values=record_values what_is_not_finite=describe_nonfinite
metrics.row_selection: probe.row_selection metrics.cached_by_shape core.errors
metrics.similarity: numerics.similarity
metrics.target_rows: probe.row_selection metrics.cached_by_shape | PerEmbedding=CachedByShape RowChoice=RowSelection
moved: model.movement_check
outlets: recording.sink_group metrics.group_convergence | Outlets=SinkGroup
parts: model.rank_parts | Part=LocalPart Rows=RowShard
plan: recording.plan core.formatting | Freight=StagingPlan freight_of=staging_plan
probability: analyze.average_probability
probe.order: numerics.hashing
probe.products: numerics.products
probe.ranks: numerics.rank_correlation
provenance: model.provenance
recorder: recording.recorder
references: recording.reference_states metrics.base | References=ReferenceStates
report: probe_report
report.figures: probe_report.figures
report.matrix: probe_report.matrix
report.render: probe_report.render
report.source: probe_report.source corpora.tokenizers
restart: recording.resume | Restart=ResumePoint
runs: lead.from_store
schedule: core.schedule
segments: numerics.segments
shown: core.printable
sinks.pieces: sinks.rank_rows | PieceSink=RankRowsSink
sketch: numerics.sketch
standstill: recording.frozen_head
store.background: store.writing.background
store.blocks: store.reading.block_reader
store.chunks: store.format.chunks
store.compact: store.maintenance.compact store.format.compaction_note | settle=finish_compaction
store.copying: store.maintenance.copying
store.declared: store.format.declared
store.export: store.maintenance.export
store.fence: store.storage.fence | FencedPlace=FencedStorage
store.flag: store.storage.flag
store.fold: store.writing.fold store.format.arrays
store.integrity: store.format.integrity
store.journal: store.format.journal | Entry=JournalEntry
store.kept: store.format.kept
store.kept_place: store.format.kept_storage | KeptPlace=KeptStorage
store.labour: store.writing.fold_progress | Labour=FoldProgress
store.layout: store.format.layout
store.lock: store.storage.lock
store.object_place: store.storage.object | ObjectPlace=ObjectStorage
store.opening: store.writing.lifecycle
store.pieces: store.writing.rank_pieces
store.place: store.storage.base store.storage.local store.storage.opening | Checksummed=ChecksumWriter LocalPlace=LocalStorage Place=Storage open_place=open_storage
store.planning: store.maintenance.planning
store.precision: store.format.precision
store.profiles: store.format.profiles
store.proof: store.reading.proof
store.reader: store.reading.reader
store.record: store.format.validation
store.repair: store.maintenance.repair
store.room: store.writing.room
store.root: store.format.root
store.schema: store.format.schema
store.shards: store.format.shards store.storage.checksum
store.snapshots: store.reading.snapshots
store.summary: store.reading.summary
store.tries: store.storage.retries
store.verify: store.maintenance.verify | Finding=StoreFinding
store.writer: store.writing.writer
store.zarr_store: store.storage.zarr_store | PlaceStore=ManifestStore
suites: checkpoints
suites.base: checkpoints.base
suites.cache: checkpoints.tensor_cache
suites.checkpoint: checkpoints.opening
suites.continuity: checkpoints.audit.continuity
suites.dcp: checkpoints.formats.dcp
suites.deadline: checkpoints.sources.deadline
suites.declared: checkpoints.declared_head
suites.dtypes: checkpoints.formats.dtypes
suites.grid: checkpoints.steps core.formatting
suites.head: checkpoints.head_key
suites.headers: checkpoints.audit.header_checks | Finding=SuiteFinding
suites.hub: checkpoints.sources.hub
suites.hub_answers: checkpoints.sources.hub_answers
suites.known: checkpoints.audit.known_reports
suites.listing: checkpoints.suite | Entry=CheckpointRef
suites.pickle_machine: checkpoints.formats.pickle_machine
suites.pickled: checkpoints.formats.pickled | Record=TensorStub
suites.quantized: checkpoints.formats.quantized
suites.ranges: checkpoints.sources.byte_source
suites.safetensors_file: checkpoints.formats.safetensors_file
suites.safetensors_shards: checkpoints.formats.safetensors_shards
suites.sizes: checkpoints.formats.dtypes
suites.snapshots: checkpoints.store_suite
suites.stored: checkpoints.formats.stored_tensor
suites.torch_zip: checkpoints.formats.torch_zip
suites.weight_files: checkpoints.weight_files
summary: cli.inspect
timetable: recording.metric_runner | Timetable=MetricRunner
tokens: core.token_counts
transfer: recording.staging recording.plan | DirectLane=BlockingStager Freight=StagingPlan Lane=Stager Parcel=StagedTensor PinnedLane=PinnedStager _Load=_Transfer freight_of=staging_plan
under_way: recording.open_update | UnderWay=OpenUpdate
variable: core.variable
verdict: lead.verdict core.formatting
"""
