*** Comments ***
Renode's own way of testing, without Python between:

    tinytrain flash demo --scheme sparse --dry-run --elf build/firmware.elf
    renode-test renode/uart.robot --variable ELF:$PWD/build/firmware.elf

renode-test brings the keywords, and its own Robot Framework 6.1. Time below is virtual: nothing sleeps. HELLO is answered
within a millisecond; a virtual second of a firmware that polls a silent USART would take minutes.

*** Variables ***
${ELF}            ${EMPTY}
${PLATFORM}       ${CURDIR}/nucleo_f746zg.repl
${UART}           sysbus.usart3
# The frame of HELLO with sequence number 1, as target/protocol.py encodes it.
@{HELLO}          0x04    0x01    0x01    0x01    0x05    0x0f    0xe3    0x21    0x81    0x00

*** Test Cases ***
Boots
    Create Board
    Watch UART
    Execute Command    emulation RunFor "0.005"
    Provides    booted

Says Hello
    Requires    booted
    Watch UART
    Start Emulation
    Send    @{HELLO}
    Wait For Prompt On Uart    nucleo-f746zg    timeout=0.02

Survives A Bad Frame
    Requires    booted
    Watch UART
    Start Emulation
    Send    0x05    0x61    0x62    0x00
    Send    @{HELLO}
    Wait For Prompt On Uart    nucleo-f746zg    timeout=0.02

A Fault Fails The Test At Once
    [Documentation]    The core is sent to the fault handler; waiting for something else must end with its report.
    Requires    booted
    Watch UART
    Execute Command    sysbus.cpu PC `sysbus GetSymbolAddress "tt_fault"`
    Start Emulation
    Run Keyword And Expect Error    *HARDFAULT pc=0x*    Wait For Line On Uart    never printed    timeout=0.02

The Cycle Counter Counts Instructions
    [Documentation]    Both are read while the machine stands still.
    Requires    booted
    ${before}=    Counters
    Execute Command    emulation RunFor "0.001"
    ${after}=    Counters
    Should Be Equal As Integers    ${{$after[0] - $before[0]}}    ${{$after[1] - $before[1]}}

*** Keywords ***
Create Board
    Skip If    '${ELF}' == ''    name the firmware: --variable ELF:/path/firmware.elf
    Execute Command    mach create "board"
    Execute Command    machine LoadPlatformDescription @${PLATFORM.replace(' ', '\\ ')}
    Execute Command    logLevel 3 sysbus.nvic
    Execute Command    sysbus LoadELF @${ELF.replace(' ', '\\ ')}
    Execute Command    sysbus.cpu VectorTableOffset 0x08000000

Watch UART
    [Documentation]    A fault is reported on the USART; it ends every wait at once, rather than after its time-out.
    Create Terminal Tester    ${UART}    timeout=0.02
    Register Failing Uart String    HARDFAULT

Send
    [Arguments]    @{bytes}
    FOR    ${byte}    IN    @{bytes}
        Execute Command    ${UART} WriteChar ${byte}
    END

Counters
    [Documentation]    Retired instructions, and CYCCNT.
    ${instructions}=    Execute Command    sysbus.cpu ExecutedInstructions
    ${cycles}=    Execute Command    sysbus ReadDoubleWord 0xE0001004
    RETURN    ${{ [int($instructions.strip(), 0), int($cycles.strip(), 0)] }}
