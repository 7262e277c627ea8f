# Set up Desk on Windows and run a first container; the same steps as packaging/up.
#
# usage: packaging\windows\up.ps1 -Image PATH-OR-URL [-Sha256 HEX] [-NoApp]
# The guest image is built on Debian (vm-images/build); here a built one is taken.
param(
    [string]$Image = "",
    [string]$Sha256 = "",
    [switch]$NoApp
)
$ErrorActionPreference = "Stop"
Set-Location (Join-Path $PSScriptRoot "..\..")

function Stop-With([string]$Sentence, [string]$Remedy) {
    [Console]::Error.WriteLine("up.ps1: $Sentence")
    if ($Remedy) { [Console]::Error.WriteLine("  $Remedy") }
    exit 1
}

function Install-Missing([string]$Program, [string]$Package) {
    if (Get-Command $Program -ErrorAction SilentlyContinue) { return }
    if (-not (Get-Command winget -ErrorAction SilentlyContinue)) {
        Stop-With "$Program is missing, and so is winget" "Install $Package by hand, then run it again."
    }
    Write-Host "Installing $Package"
    winget install --exact --silent --accept-package-agreements --accept-source-agreements --id $Package
    if ($LASTEXITCODE -ne 0) { Stop-With "winget could not install $Package" "Install it by hand, then run it again." }
    $env:Path = [Environment]::GetEnvironmentVariable("Path", "Machine") + ";" + [Environment]::GetEnvironmentVariable("Path", "User")
}

if (-not $Image) {
    $Image = "build\guest"
    if (-not (Test-Path "$Image\manifest.json")) {
        Stop-With "there is no guest image" "Take a built one: up.ps1 -Image PATH-OR-URL -Sha256 HEX"
    }
}
if ($Image -match "^https?://" -and -not $Sha256) {
    Stop-With "the image $Image comes without its checksum" "Add -Sha256 with the SHA-256 that its publisher tells."
}
if ($Sha256) { $Image = "$Image#sha256=$Sha256" }

Install-Missing "py" "Python.Python.3.13"
$env:Path += ";$env:ProgramFiles\qemu"
Install-Missing "qemu-system-x86_64" "SoftwareFreedomConservancy.QEMU"

if (-not (Test-Path ".venv\Scripts\python.exe")) {
    Write-Host "Making .venv"
    py -3 -m venv .venv
    if ($LASTEXITCODE -ne 0) { Stop-With "Python cannot make .venv" "Install Python 3.11 or newer, then run it again." }
}
$Extras = if ($NoApp) { "" } else { "[gui]" }
$State = "$Extras " + (Get-FileHash pyproject.toml).Hash
$Stamp = ".venv\.desk-up"
if (-not (Test-Path $Stamp) -or (Get-Content $Stamp) -ne $State) {
    Write-Host "Installing Desk into .venv"
    & .venv\Scripts\python.exe -m pip install --disable-pip-version-check --quiet -e ".$Extras"
    if ($LASTEXITCODE -ne 0) { Stop-With "pip could not install Desk" "Check the network, then run it again." }
    Set-Content $Stamp $State
}
$Desk = Join-Path $PWD ".venv\Scripts\desk.exe"
foreach ($Arguments in @(
        @("machine", "image", "install", $Image),
        @("up", "--name", "default"),
        @("-m", "default", "run", "--rm", "busybox", "echo", "Hello from a container in Desk's machine."))) {
    & $Desk @Arguments
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
Write-Host ""
Write-Host "Next, type:"
Write-Host "  `$env:Path = `"$PWD\.venv\Scripts;`$env:Path`""
Write-Host "  desk run -it --rm busybox sh"
Write-Host "  desk-env | Out-String | Invoke-Expression; docker ps"
